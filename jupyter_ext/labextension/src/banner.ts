import { NotebookPanel } from '@jupyterlab/notebook';
import { Actions } from './actions';
import { KernelFollower } from './follower';
import { torporIcon } from './icon';
import { TorporModel } from './model';
import { Words } from './words';

/** The banner on a notebook whose kernel is parked, with a button to wake it. */
export class ParkedBanner extends KernelFollower {
  constructor(
    panel: NotebookPanel,
    model: TorporModel,
    private readonly words: Words,
    actions: Actions
  ) {
    super(panel, model);
    this.addClass('jp-Torpor-banner');
    this.node.setAttribute('role', 'region');
    this.node.setAttribute('aria-label', words.trans.__('Parked kernel'));
    torporIcon.element({ container: this.node.appendChild(document.createElement('div')), width: '16px' });
    this._words = this.node.appendChild(document.createElement('span'));
    this._words.setAttribute('role', 'status');
    this._button = this.node.appendChild(document.createElement('button'));
    this._button.className = 'jp-mod-styled jp-mod-accept';
    this._button.textContent = words.trans.__('Wake');
    this._button.onclick = () => {
      const kernel = panel.sessionContext.session?.kernel;
      if (kernel) {
        void actions.resume(kernel.id);
      }
    };
    this.begin();
  }

  protected follow(): void {
    const { kernel } = this;
    const doing = kernel?.operation?.doing;
    // A kernel that goes back is parked only for a moment.
    if (kernel?.state === 'parked' && doing !== 'restoring' && doing !== 'parking') {
      this._words.textContent = kernel.operation
        ? this.words.doing(kernel.operation)
        : this.words.trans.__(
            'The kernel has been parked since %1. Cells you run wait until it is awake.',
            this.words.moment(kernel.parked_ns ?? 0)
          );
      this._button.disabled = !!kernel.operation;
      this.show();
    } else {
      this.hide();
    }
  }

  private readonly _words: HTMLSpanElement;
  private readonly _button: HTMLButtonElement;
}
