import { ISessionContext } from '@jupyterlab/apputils';
import { NotebookPanel } from '@jupyterlab/notebook';
import { Kernel } from '@jupyterlab/services';
import { ISignal, Signal } from '@lumino/signaling';
import { KernelFollower } from './follower';
import { torporIcon } from './icon';
import { TorporModel } from './model';
import { Words } from './words';

/** In the toolbar of a notebook whose kernel is parked, where JupyterLab would show what it last knew: Idle. */
export class ParkedLabel extends KernelFollower {
  constructor(panel: NotebookPanel, model: TorporModel, words: Words) {
    super(panel, model);
    this.addClass('jp-Torpor-parked');
    torporIcon.element({ container: this.node.appendChild(document.createElement('span')), width: '14px' });
    this.node.append(words.trans.__('Parked'));
    this.silence(panel.sessionContext);
    this.begin();
  }

  private get parked(): boolean {
    return this.kernel?.state === 'parked';
  }

  /** Let JupyterLab's own displays, in the toolbar and in the status bar, have no status while the kernel is parked. */
  private silence(context: ISessionContext): void {
    const own = Object.getOwnPropertyDescriptor(Object.getPrototypeOf(context), 'kernelDisplayStatus')?.get;
    if (own) {
      Object.defineProperty(context, 'kernelDisplayStatus', {
        get: () => (this.parked ? '' : own.call(context)),
        configurable: true
      });
    }
  }

  protected follow(): void {
    const { parked } = this;
    if (parked === this.isHidden) {
      this.setHidden(!parked);
      this.panel.toggleClass('jp-mod-torporParked', parked);
      const { statusChanged } = this.panel.sessionContext;
      (statusChanged as ISignal<ISessionContext, Kernel.Status> & Partial<Signal<ISessionContext, Kernel.Status>>).emit?.(
        this.panel.sessionContext.session?.kernel?.status ?? 'unknown'
      );
    }
  }
}
