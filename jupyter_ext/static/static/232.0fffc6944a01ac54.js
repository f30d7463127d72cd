"use strict";(self.rspackChunktorpor=self.rspackChunktorpor||[]).push([[232],{475(o,r,e){var t=e(601),n=e.n(t),a=e(314),p=(e.n(a))()(n());p.push([o.id,`/* Only JupyterLab's own variables: the panel follows every theme. */

.jp-Torpor {
  display: flex;
  flex-direction: column;
  color: var(--jp-ui-font-color1);
  background: var(--jp-layout-color1);
  font-size: var(--jp-ui-font-size1);
  overflow: auto;
}

.jp-Torpor-head {
  display: flex;
  flex-wrap: wrap;
  align-items: center;
  gap: 4px;
  padding: 8px;
  border-bottom: var(--jp-border-width) solid var(--jp-border-color2);
}

.jp-Torpor-title {
  flex: 1 0 100%;
  font-weight: 600;
  overflow: hidden;
  text-overflow: ellipsis;
  white-space: nowrap;
}

.jp-Torpor-state {
  flex: 1 0 100%;
  color: var(--jp-ui-font-color2);
}

.jp-Torpor-head progress {
  flex: 1 0 100%;
}

.jp-Torpor-hint {
  margin: 8px;
  color: var(--jp-ui-font-color2);
  line-height: 1.5;
}

.jp-Torpor-list {
  margin: 0;
  padding: 0;
  list-style: none;
}

.jp-Torpor-item {
  position: relative;
  padding: 4px 8px;
  border-left: 3px solid transparent;
}

.jp-Torpor-item:hover,
.jp-Torpor-item:focus-within {
  background: var(--jp-layout-color2);
}

.jp-Torpor-item:focus-visible {
  outline: 1px solid var(--jp-brand-color1);
  outline-offset: -1px;
}

.jp-Torpor-item.jp-mod-here {
  border-left-color: var(--jp-brand-color1);
}

.jp-Torpor-name,
.jp-Torpor-cell,
.jp-Torpor-facts {
  overflow: hidden;
  text-overflow: ellipsis;
  white-space: nowrap;
}

.jp-Torpor-item.jp-mod-automatic .jp-Torpor-name {
  color: var(--jp-ui-font-color2);
  font-style: italic;
}

.jp-Torpor-cell {
  color: var(--jp-ui-font-color2);
  font-family: var(--jp-code-font-family);
  font-size: var(--jp-ui-font-size0);
}

.jp-Torpor-facts {
  color: var(--jp-ui-font-color2);
  font-size: var(--jp-ui-font-size0);
}

.jp-Torpor-actions {
  position: absolute;
  top: 2px;
  right: 4px;
  display: flex;
  background: var(--jp-layout-color2);
  opacity: 0;
}

.jp-Torpor-item:hover .jp-Torpor-actions,
.jp-Torpor-item:focus-within .jp-Torpor-actions {
  opacity: 1;
}

.jp-Torpor-actions button {
  display: flex;
  padding: 2px;
  border: none;
  border-radius: var(--jp-border-radius);
  color: var(--jp-ui-font-color2);
  background: none;
  cursor: pointer;
}

.jp-Torpor-actions button:hover {
  background: var(--jp-layout-color3);
}

.jp-Torpor-actions button:focus-visible {
  outline: 1px solid var(--jp-brand-color1);
}

.jp-Torpor-actions button[aria-pressed='true'] {
  background: var(--jp-brand-color3);
}

.jp-Torpor-banner {
  display: flex;
  align-items: center;
  gap: 8px;
  padding: 4px 12px;
  min-height: 34px;
  color: var(--jp-ui-font-color1);
  background: var(--jp-layout-color2);
  border-bottom: var(--jp-border-width) solid var(--jp-border-color2);
}

.jp-Torpor-banner span {
  flex: 1;
}

.jp-Torpor-banner button {
  margin: 2px 0;
}

.jp-Torpor-banner .jp-icon-hoverable {
  display: flex;
}
`,""]),e.d(r,{},{A:p})},314(o){o.exports=function(o){var r=[];return r.toString=function(){return this.map(function(r){var e="",t=void 0!==r[5];return r[4]&&(e+="@supports (".concat(r[4],") {")),r[2]&&(e+="@media ".concat(r[2]," {")),t&&(e+="@layer".concat(r[5].length>0?" ".concat(r[5]):""," {")),e+=o(r),t&&(e+="}"),r[2]&&(e+="}"),r[4]&&(e+="}"),e}).join("")},r.i=function(o,e,t,n,a){"string"==typeof o&&(o=[[null,o,void 0]]);var p={};if(t)for(var i=0;i<this.length;i++){var c=this[i][0];null!=c&&(p[c]=!0)}for(var l=0;l<o.length;l++){var s=[].concat(o[l]);t&&p[s[0]]||(void 0!==a&&(void 0===s[5]||(s[1]="@layer".concat(s[5].length>0?" ".concat(s[5]):""," {").concat(s[1],"}")),s[5]=a),e&&(s[2]&&(s[1]="@media ".concat(s[2]," {").concat(s[1],"}")),s[2]=e),n&&(s[4]?(s[1]="@supports (".concat(s[4],") {").concat(s[1],"}"),s[4]=n):s[4]="".concat(n)),r.push(s))}},r}},601(o){o.exports=function(o){return o[1]}},72(o){var r=[];function e(o){for(var e=-1,t=0;t<r.length;t++)if(r[t].identifier===o){e=t;break}return e}function t(o,t){for(var n={},a=[],p=0;p<o.length;p++){var i=o[p],c=t.base?i[0]+t.base:i[0],l=n[c]||0,s="".concat(c," ").concat(l);n[c]=l+1;var u=e(s),d={css:i[1],media:i[2],sourceMap:i[3],supports:i[4],layer:i[5]};if(-1!==u)r[u].references++,r[u].updater(d);else{var f=function(o,r){var e=r.domAPI(r);return e.update(o),function(r){r?(r.css!==o.css||r.media!==o.media||r.sourceMap!==o.sourceMap||r.supports!==o.supports||r.layer!==o.layer)&&e.update(o=r):e.remove()}}(d,t);t.byIndex=p,r.splice(p,0,{identifier:s,updater:f,references:1})}a.push(s)}return a}o.exports=function(o,n){var a=t(o=o||[],n=n||{});return function(o){o=o||[];for(var p=0;p<a.length;p++){var i=e(a[p]);r[i].references--}for(var c=t(o,n),l=0;l<a.length;l++){var s=e(a[l]);0===r[s].references&&(r[s].updater(),r.splice(s,1))}a=c}}},659(o){var r={};o.exports=function(o,e){var t=function(o){if(void 0===r[o]){var e=document.querySelector(o);if(window.HTMLIFrameElement&&e instanceof window.HTMLIFrameElement)try{e=e.contentDocument.head}catch(o){e=null}r[o]=e}return r[o]}(o);if(!t)throw Error("Couldn't find a style target. This probably means that the value for the 'insert' parameter is invalid.");t.appendChild(e)}},540(o){o.exports=function(o){var r=document.createElement("style");return o.setAttributes(r,o.attributes),o.insert(r,o.options),r}},56(o,r,e){o.exports=function(o){var r=e.nc;r&&o.setAttribute("nonce",r)}},825(o){o.exports=function(o){if("u"<typeof document)return{update:function(){},remove:function(){}};var r=o.insertStyleElement(o);return{update:function(e){var t,n,a;t="",e.supports&&(t+="@supports (".concat(e.supports,") {")),e.media&&(t+="@media ".concat(e.media," {")),(n=void 0!==e.layer)&&(t+="@layer".concat(e.layer.length>0?" ".concat(e.layer):""," {")),t+=e.css,n&&(t+="}"),e.media&&(t+="}"),e.supports&&(t+="}"),(a=e.sourceMap)&&"u">typeof btoa&&(t+="\n/*# sourceMappingURL=data:application/json;base64,".concat(btoa(unescape(encodeURIComponent(JSON.stringify(a))))," */")),o.styleTagTransform(t,r,o.options)},remove:function(){var o;null===(o=r).parentNode||o.parentNode.removeChild(o)}}}},113(o){o.exports=function(o,r){if(r.styleSheet)r.styleSheet.cssText=o;else{for(;r.firstChild;)r.removeChild(r.firstChild);r.appendChild(document.createTextNode(o))}}},579(o,r,e){var t=e(72),n=e.n(t),a=e(825),p=e.n(a),i=e(659),c=e.n(i),l=e(56),s=e.n(l),u=e(540),d=e.n(u),f=e(113),v=e.n(f),j=e(475),m={};m.styleTagTransform=v(),m.setAttributes=s(),m.insert=c().bind(null,"head"),m.domAPI=p(),m.insertStyleElement=d(),n()(j.A,m),j.A&&j.A.locals&&j.A.locals}}]);