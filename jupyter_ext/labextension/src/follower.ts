import { NotebookPanel } from '@jupyterlab/notebook';
import { Widget } from '@lumino/widgets';
import { IKernel } from './api';
import { TorporModel } from './model';

/** What a notebook shows of its kernel, and follows: which kernel it has, and what Torpor says of it. */
export abstract class KernelFollower extends Widget {
  constructor(
    protected readonly panel: NotebookPanel,
    protected readonly model: TorporModel
  ) {
    super();
  }

  dispose(): void {
    this.model.changed.disconnect(this.follow, this);
    super.dispose();
  }

  /** Begin, hidden; to be called once all is made that is shown. */
  protected begin(): void {
    this.hide();
    this.model.changed.connect(this.follow, this);
    this.panel.sessionContext.kernelChanged.connect(this.follow, this);
    this.follow();
  }

  /** What Torpor says of the notebook's kernel. */
  protected get kernel(): IKernel | undefined {
    return this.model.kernel(this.panel.sessionContext.session?.kernel?.id);
  }

  /** Show what holds now. */
  protected abstract follow(): void;
}
