"use strict";(self.rspackChunktorpor=self.rspackChunktorpor||[]).push([[232],{475(o,r,e){var p=e(601),t=e.n(p),i=e(314),a=(e.n(i))()(t());a.push([o.id,`/* Only JupyterLab's own variables: the panel follows every theme. */

.jp-Torpor {
  display: flex;
  flex-direction: column;
  color: var(--jp-ui-font-color1);
  background: var(--jp-layout-color1);
  font-size: var(--jp-ui-font-size1);
  overflow: auto;
}

.jp-Torpor-head {
  padding: 8px 12px;
  border-bottom: var(--jp-border-width) solid var(--jp-border-color2);
}

.jp-Torpor h2 {
  margin: 12px 12px 4px;
  font-size: var(--jp-ui-font-size1);
  font-weight: 600;
  line-height: 20px;
}

.jp-Torpor h2 + .jp-Torpor-hint {
  margin: 0 12px 4px;
}

.jp-Torpor-head h2 {
  margin: 0;
  overflow: hidden;
  text-overflow: ellipsis;
  white-space: nowrap;
}

.jp-Torpor-state {
  display: flex;
  align-items: center;
  gap: 8px;
  min-height: 20px;
  color: var(--jp-ui-font-color2);
}

.jp-Torpor-state progress {
  flex: 1;
  min-width: 0;
  height: 4px;
  accent-color: var(--jp-brand-color1);
}

.jp-Torpor-link {
  padding: 0;
  border: none;
  color: var(--jp-content-link-color);
  background: none;
  font: inherit;
  cursor: pointer;
}

.jp-Torpor-link:hover {
  text-decoration: underline;
}

.jp-Torpor-buttons {
  display: flex;
  flex-wrap: wrap;
  margin: 4px -6px 0;
}

.jp-Torpor-buttons svg {
  margin-right: 4px;
}

.jp-Torpor-hint {
  margin: 12px;
  color: var(--jp-ui-font-color2);
  line-height: 1.5;
}

.jp-Torpor-strip {
  position: relative;
  flex: none;
  margin: 8px 12px 0;
}

.jp-Torpor-points {
  position: relative;
  height: 20px;
  background: linear-gradient(var(--jp-border-color1), var(--jp-border-color1)) center / 100% 1px no-repeat;
}

.jp-Torpor-points:focus-visible {
  outline: 1px solid var(--jp-brand-color1);
}

.jp-Torpor-points span {
  position: absolute;
  top: 6px;
  width: 8px;
  height: 8px;
  margin-left: -4px;
  border: 1px solid var(--jp-ui-font-color3);
  border-radius: 50%;
  box-sizing: border-box;
  background: var(--jp-layout-color1);
  pointer-events: none;
}

.jp-Torpor-points .jp-mod-here {
  border-color: var(--jp-brand-color1);
  background: var(--jp-brand-color1);
}

.jp-Torpor-points .jp-mod-shown {
  box-shadow: 0 0 0 2px var(--jp-brand-color2);
}

/* Over the list, which does not move when it comes and goes. */
.jp-Torpor-then {
  position: absolute;
  z-index: 1;
  top: 100%;
  right: 0;
  left: 0;
  padding: 6px 8px;
  border: var(--jp-border-width) solid var(--jp-border-color1);
  background: var(--jp-layout-color1);
  box-shadow: var(--jp-elevation-z4);
  pointer-events: none;
}

.jp-Torpor-then .jp-Torpor-label {
  font-weight: 600;
}

.jp-Torpor-then table {
  width: 100%;
  border-collapse: collapse;
  table-layout: fixed;
  font-family: var(--jp-code-font-family);
  font-size: var(--jp-ui-font-size0);
}

.jp-Torpor-then :is(th, td) {
  padding: 1px 4px 1px 0;
  overflow: hidden;
  font-weight: normal;
  text-align: left;
  text-overflow: ellipsis;
  white-space: nowrap;
}

.jp-Torpor-find {
  display: flex;
  align-items: center;
  gap: 8px;
  padding: 8px 12px 0;
}

.jp-Torpor-find input {
  flex: 1;
  min-width: 0;
  height: 26px;
  padding: 0 6px;
  font-size: var(--jp-ui-font-size1);
}

.jp-Torpor-find button {
  flex: none;
}

.jp-Torpor-dialog .jp-Torpor-several {
  max-height: 40vh;
  padding: 0;
  overflow: auto;
  list-style: none;
}

.jp-Torpor-store {
  font-size: var(--jp-ui-font-size0);
}

.jp-Torpor-list {
  margin: 0;
  padding: 4px 0;
  list-style: none;
}

.jp-Torpor-item {
  position: relative;
  display: flex;
  height: 46px;
  padding: 0 12px 0 8px;
  cursor: default;
}

.jp-Torpor-item:hover {
  background: var(--jp-layout-color2);
}

.jp-Torpor-list:focus-within .jp-Torpor-item[aria-selected='true'] {
  background: var(--jp-layout-color2);
}

.jp-Torpor-item:focus-visible,
.jp-Torpor-actions button:focus-visible,
.jp-Torpor-link:focus-visible {
  outline: 1px solid var(--jp-brand-color1);
  outline-offset: -1px;
}

.jp-Torpor-rails {
  flex: none;
}

.jp-Torpor-rails path {
  fill: none;
  stroke: var(--jp-border-color1);
  stroke-width: 1.5;
}

.jp-Torpor-rails circle {
  fill: var(--jp-layout-color1);
  stroke: var(--jp-ui-font-color3);
  stroke-width: 1.5;
}

.jp-mod-here .jp-Torpor-rails circle {
  fill: var(--jp-brand-color1);
  stroke: var(--jp-brand-color1);
}

.jp-mod-damaged .jp-Torpor-rails circle {
  stroke: var(--jp-error-color1);
}

.jp-Torpor-text {
  flex: 1;
  min-width: 0;
  padding: 5px 0 5px 4px;
}

.jp-Torpor-line {
  display: flex;
  align-items: center;
  gap: 4px;
  height: 18px;
}

.jp-Torpor-name,
.jp-Torpor-note,
.jp-Torpor-cell {
  flex: 1;
  min-width: 0;
  overflow: hidden;
  text-overflow: ellipsis;
  white-space: nowrap;
}

.jp-mod-here .jp-Torpor-name {
  font-weight: 600;
}

.jp-mod-automatic .jp-Torpor-name {
  color: var(--jp-ui-font-color2);
  font-style: italic;
}

.jp-Torpor-note {
  color: var(--jp-ui-font-color2);
  font-size: var(--jp-ui-font-size0);
}

.jp-Torpor-cell {
  color: var(--jp-ui-font-color2);
  font-family: var(--jp-code-font-family);
  font-size: var(--jp-ui-font-size0);
}

.jp-mod-damaged .jp-Torpor-cell {
  color: var(--jp-error-color1);
  font-family: inherit;
}

.jp-Torpor-fact {
  flex: none;
  color: var(--jp-ui-font-color2);
  font-size: var(--jp-ui-font-size0);
}

.jp-Torpor-pinned {
  display: flex;
  flex: none;
}

.jp-Torpor-actions {
  position: absolute;
  bottom: 2px;
  right: 8px;
  display: flex;
  padding-left: 4px;
  background: var(--jp-layout-color2);
  opacity: 0;
}

.jp-Torpor-item:hover .jp-Torpor-actions,
.jp-Torpor-item:focus-visible .jp-Torpor-actions,
.jp-Torpor-actions:focus-within {
  opacity: 1;
}

/* The buttons take the place of the second line's end, and the pin among them that of the one beside the name. */
.jp-Torpor-item:is(:hover, :focus-visible, :has(.jp-Torpor-actions :focus)) .jp-Torpor-line:last-child {
  padding-right: 112px;
}

.jp-Torpor-item:is(:hover, :focus-visible, :has(.jp-Torpor-actions :focus))
  :is(.jp-Torpor-line:last-child .jp-Torpor-fact, .jp-Torpor-pinned) {
  display: none;
}

.jp-Torpor-actions button {
  display: flex;
  padding: 3px;
  border: none;
  border-radius: var(--jp-border-radius);
  color: var(--jp-ui-font-color2);
  background: none;
  cursor: pointer;
}

.jp-Torpor-actions span {
  display: flex;
}

.jp-Torpor-actions button:hover:enabled {
  background: var(--jp-layout-color3);
}

.jp-Torpor-actions button:disabled {
  opacity: 0.4;
  cursor: default;
}

.jp-Torpor-actions button[aria-pressed='true'] {
  background: var(--jp-layout-color4);
}

.jp-Torpor-unsaved {
  margin-top: 4px;
  padding: 4px 8px;
  border-left: 3px solid var(--jp-error-color1);
  background: var(--jp-layout-color2);
}

.jp-Torpor-unsaved p {
  margin: 0;
  line-height: 1.4;
  overflow-wrap: anywhere;
}

.jp-Torpor-parked {
  display: flex;
  align-items: center;
  padding: 0 4px;
  gap: 4px;
  color: var(--jp-ui-font-color1);
}

.jp-Torpor-parked span {
  display: flex;
}

.jp-mod-torporParked .jp-Notebook-ExecutionIndicator {
  visibility: hidden;
}

.jp-Torpor-running .jp-Torpor-link {
  margin-left: 8px;
}

.jp-mod-torporUndone .jp-InputPrompt,
.jp-mod-torporUndone .jp-OutputPrompt {
  opacity: 0.45;
}

.jp-mod-torporUndone {
  position: relative;
}

.jp-mod-torporUndone::after {
  content: attr(data-torpor-undone);
  position: absolute;
  top: 11px;
  right: 14px;
  color: var(--jp-ui-font-color2);
  font-size: var(--jp-ui-font-size0);
  pointer-events: none;
}

/* Read by screen readers only. */
.jp-Torpor-spoken {
  position: absolute;
  width: 1px;
  height: 1px;
  overflow: hidden;
  clip-path: inset(50%);
  white-space: nowrap;
}

.jp-Torpor-status [role='button'] {
  height: 100%;
  padding: 0 4px;
  align-items: center;
  cursor: pointer;
}

.jp-Torpor-dialog {
  max-width: 560px;
  line-height: 1.5;
}

.jp-Torpor-dialog p {
  margin: 0 0 8px;
}

.jp-Torpor-dialog textarea {
  width: 400px;
  max-width: 100%;
  resize: vertical;
}

.jp-Torpor-dialog ul {
  margin: 0 0 8px;
  padding-left: 20px;
}

.jp-Torpor-dialog .jp-Torpor-label {
  margin-bottom: 2px;
  font-weight: 600;
}

.jp-Torpor-dialog .jp-Torpor-code {
  margin: 2px 0 4px;
  padding: 4px 8px;
  border-radius: var(--jp-border-radius);
  background: var(--jp-layout-color2);
  font-family: var(--jp-code-font-family);
  font-size: var(--jp-code-font-size);
  list-style: none;
}

.jp-Torpor-code li {
  overflow: hidden;
  text-overflow: ellipsis;
  white-space: nowrap;
}

.jp-Torpor-warning {
  color: var(--jp-error-color1);
}

.jp-Torpor-faint {
  color: var(--jp-ui-font-color2);
}

.jp-Torpor-choice {
  display: flex;
  align-items: center;
  gap: 8px;
}

.jp-Torpor-compare {
  width: 640px;
  max-width: 100%;
}

.jp-Torpor-sides {
  display: flex;
  gap: 16px;
  margin-bottom: 12px;
}

.jp-Torpor-sides label {
  flex: 1;
  min-width: 0;
}

.jp-Torpor-variables {
  max-height: 40vh;
  overflow: auto;
  margin-bottom: 12px;
  border: var(--jp-border-width) solid var(--jp-border-color2);
}

.jp-Torpor-variables table {
  width: 100%;
  border-collapse: collapse;
  table-layout: fixed;
}

.jp-Torpor-variables th,
.jp-Torpor-variables td {
  padding: 2px 8px;
  overflow: hidden;
  font-weight: normal;
  text-align: left;
  text-overflow: ellipsis;
  white-space: nowrap;
}

.jp-Torpor-variables :is(th, td):first-child {
  width: 12px;
}

.jp-Torpor-variables thead th {
  position: sticky;
  top: 0;
  background: var(--jp-layout-color2);
  font-weight: 600;
}

.jp-Torpor-variables tbody {
  font-family: var(--jp-code-font-family);
  font-size: var(--jp-code-font-size);
}

.jp-Torpor-variables .jp-mod-added td:first-child {
  color: var(--jp-success-color1);
}

.jp-Torpor-variables .jp-mod-removed td:first-child {
  color: var(--jp-error-color1);
}

.jp-Torpor-variables .jp-mod-changed td:first-child {
  color: var(--jp-warn-color1);
}

.jp-Torpor-bar {
  display: flex;
  height: 8px;
  gap: 1px;
  border-radius: var(--jp-border-radius);
  overflow: hidden;
}

.jp-Torpor-bar div {
  flex-basis: 0;
}

.jp-Torpor-bar .jp-mod-added {
  background: var(--jp-success-color1);
}

.jp-Torpor-bar .jp-mod-removed {
  background: var(--jp-error-color1);
}

.jp-Torpor-bar .jp-mod-shared {
  background: var(--jp-layout-color4);
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
  height: 24px;
  margin: 0;
  padding: 0 12px;
  line-height: 24px;
}

.jp-Torpor-banner > div {
  display: flex;
}
`,""]),e.d(r,{},{A:a})},314(o){o.exports=function(o){var r=[];return r.toString=function(){return this.map(function(r){var e="",p=void 0!==r[5];return r[4]&&(e+="@supports (".concat(r[4],") {")),r[2]&&(e+="@media ".concat(r[2]," {")),p&&(e+="@layer".concat(r[5].length>0?" ".concat(r[5]):""," {")),e+=o(r),p&&(e+="}"),r[2]&&(e+="}"),r[4]&&(e+="}"),e}).join("")},r.i=function(o,e,p,t,i){"string"==typeof o&&(o=[[null,o,void 0]]);var a={};if(p)for(var n=0;n<this.length;n++){var l=this[n][0];null!=l&&(a[l]=!0)}for(var s=0;s<o.length;s++){var d=[].concat(o[s]);p&&a[d[0]]||(void 0!==i&&(void 0===d[5]||(d[1]="@layer".concat(d[5].length>0?" ".concat(d[5]):""," {").concat(d[1],"}")),d[5]=i),e&&(d[2]&&(d[1]="@media ".concat(d[2]," {").concat(d[1],"}")),d[2]=e),t&&(d[4]?(d[1]="@supports (".concat(d[4],") {").concat(d[1],"}"),d[4]=t):d[4]="".concat(t)),r.push(d))}},r}},601(o){o.exports=function(o){return o[1]}},72(o){var r=[];function e(o){for(var e=-1,p=0;p<r.length;p++)if(r[p].identifier===o){e=p;break}return e}function p(o,p){for(var t={},i=[],a=0;a<o.length;a++){var n=o[a],l=p.base?n[0]+p.base:n[0],s=t[l]||0,d="".concat(l," ").concat(s);t[l]=s+1;var c=e(d),j={css:n[1],media:n[2],sourceMap:n[3],supports:n[4],layer:n[5]};if(-1!==c)r[c].references++,r[c].updater(j);else{var f=function(o,r){var e=r.domAPI(r);return e.update(o),function(r){r?(r.css!==o.css||r.media!==o.media||r.sourceMap!==o.sourceMap||r.supports!==o.supports||r.layer!==o.layer)&&e.update(o=r):e.remove()}}(j,p);p.byIndex=a,r.splice(a,0,{identifier:d,updater:f,references:1})}i.push(d)}return i}o.exports=function(o,t){var i=p(o=o||[],t=t||{});return function(o){o=o||[];for(var a=0;a<i.length;a++){var n=e(i[a]);r[n].references--}for(var l=p(o,t),s=0;s<i.length;s++){var d=e(i[s]);0===r[d].references&&(r[d].updater(),r.splice(d,1))}i=l}}},659(o){var r={};o.exports=function(o,e){var p=function(o){if(void 0===r[o]){var e=document.querySelector(o);if(window.HTMLIFrameElement&&e instanceof window.HTMLIFrameElement)try{e=e.contentDocument.head}catch(o){e=null}r[o]=e}return r[o]}(o);if(!p)throw Error("Couldn't find a style target. This probably means that the value for the 'insert' parameter is invalid.");p.appendChild(e)}},540(o){o.exports=function(o){var r=document.createElement("style");return o.setAttributes(r,o.attributes),o.insert(r,o.options),r}},56(o,r,e){o.exports=function(o){var r=e.nc;r&&o.setAttribute("nonce",r)}},825(o){o.exports=function(o){if("u"<typeof document)return{update:function(){},remove:function(){}};var r=o.insertStyleElement(o);return{update:function(e){var p,t,i;p="",e.supports&&(p+="@supports (".concat(e.supports,") {")),e.media&&(p+="@media ".concat(e.media," {")),(t=void 0!==e.layer)&&(p+="@layer".concat(e.layer.length>0?" ".concat(e.layer):""," {")),p+=e.css,t&&(p+="}"),e.media&&(p+="}"),e.supports&&(p+="}"),(i=e.sourceMap)&&"u">typeof btoa&&(p+="\n/*# sourceMappingURL=data:application/json;base64,".concat(btoa(unescape(encodeURIComponent(JSON.stringify(i))))," */")),o.styleTagTransform(p,r,o.options)},remove:function(){var o;null===(o=r).parentNode||o.parentNode.removeChild(o)}}}},113(o){o.exports=function(o,r){if(r.styleSheet)r.styleSheet.cssText=o;else{for(;r.firstChild;)r.removeChild(r.firstChild);r.appendChild(document.createTextNode(o))}}},579(o,r,e){var p=e(72),t=e.n(p),i=e(825),a=e.n(i),n=e(659),l=e.n(n),s=e(56),d=e.n(s),c=e(540),j=e.n(c),f=e(113),u=e.n(f),h=e(475),v={};v.styleTagTransform=u(),v.setAttributes=d(),v.insert=l().bind(null,"head"),v.domAPI=a(),v.insertStyleElement=j(),t()(h.A,v),h.A&&h.A.locals&&h.A.locals}}]);