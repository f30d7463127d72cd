import { ServiceManager } from '@jupyterlab/services';
import { IDisposable } from '@lumino/disposable';
import { ISignal, Signal } from '@lumino/signaling';
import { ICheckpoint, IKernel, IRules, IStore, Refusal, TorporAPI } from './api';
import { Words } from './words';

/** The schema of the server's events. */
const EVENT = 'https://events.torpor.invalid/kernel/v1';
/** How often progress is asked for while something is done to a kernel, milliseconds. */
const PROGRESS_MS = 400;

/** The rules that a notebook can set for its kernel. */
const RULES = ['checkpoint_every', 'checkpoint_after', 'keep_last'] as const;

/** The server's kernels and checkpoints, kept up to date by its events. */
export class TorporModel implements IDisposable {
  constructor(
    readonly api: TorporAPI,
    services: ServiceManager.IManager,
    private readonly words: Words
  ) {
    services.events.stream.connect((_, event) => {
      if (event.schema_id === EVENT) {
        if (event.what === 'interrupted') {
          this._interrupted.emit(event.kernel_id as string);
        } else if (event.what === 'asks' || event.what === 'ended') {
          this._asks.emit();
        }
        this._stale = true;
        void this.refresh();
      }
    });
    services.sessions.runningChanged.connect(() => void this.refresh());
    void this.refresh();
  }

  /** Emitted after every change. */
  get changed(): ISignal<this, void> {
    return this._changed;
  }

  /** Emitted with the kernel when a parked one was to be interrupted. */
  get interrupted(): ISignal<this, string> {
    return this._interrupted;
  }

  /** Emitted when a kernel asks for a line, and the page that ran the cell has gone; or one ended without a server. */
  get asks(): ISignal<this, void> {
    return this._asks;
  }

  get kernels(): readonly IKernel[] {
    return this._kernels;
  }

  get parked(): IKernel[] {
    return this._kernels.filter(kernel => kernel.state === 'parked');
  }

  kernel(id: string | undefined): IKernel | undefined {
    return this._kernels.find(kernel => kernel.id === id);
  }

  /** Why the server refuses to answer; empty when it answers, or cannot be reached. */
  get trouble(): string {
    return this._trouble;
  }

  /** The kernel whose checkpoints are loaded, too. */
  get watched(): string | undefined {
    return this._watched;
  }

  /** The current notebook, if there is one. */
  get path(): string | undefined {
    return this._path;
  }

  /** Follow a notebook, and its kernel if it has one. `own` gives what the notebook's metadata says of its rules. */
  watch(path: string | undefined, kernel: string | undefined, own: () => unknown = () => undefined): void {
    this._own = own;
    if (kernel !== this._watched || path !== this._path) {
      this._watched = kernel;
      this._path = path;
      this._checkpoints = [];
      this._earlier = [];
      this._origin = undefined;
      this._stale = true;
      this._changed.emit();
      void this.refresh();
    }
  }

  /** The checkpoints of the watched kernel, oldest first. */
  get checkpoints(): readonly ICheckpoint[] {
    return this._checkpoints;
  }

  /** The checkpoints of other kernels that the notebook had, oldest first. */
  get earlier(): readonly ICheckpoint[] {
    return this._earlier;
  }

  /** The store, if it is known yet. */
  get store(): IStore | undefined {
    return this._store;
  }

  /** The rules for the watched kernel: the server's, but for those that its notebook sets. */
  get rules(): IRules | undefined {
    const own = (this._own() ?? {}) as Record<string, unknown>;
    return this._store && { ...this._store, ...Object.fromEntries(RULES.filter(name => isRule(own[name])).map(name => [name, own[name]])) };
  }

  /** Of a fork: the checkpoint of another kernel from which the watched one began. */
  get origin(): ICheckpoint | undefined {
    return this._origin;
  }

  checkpoint(id: string | undefined): ICheckpoint | undefined {
    return [...this._checkpoints, ...this._earlier].find(checkpoint => checkpoint.id === id);
  }

  /** A checkpoint's title. */
  title(checkpoint: ICheckpoint): string {
    return this.words.title(checkpoint, id => this.checkpoint(id));
  }

  /** All checkpoints of the kernel that one belongs to, oldest first. */
  beside(checkpoint: ICheckpoint): ICheckpoint[] {
    return [...this._checkpoints, ...this._earlier].filter(other => other.kernel_id === checkpoint.kernel_id);
  }

  /** The checkpoint that commands act on. */
  get selected(): string | undefined {
    return this._selected;
  }

  set selected(id: string | undefined) {
    if (id !== this._selected) {
      this._selected = id;
      this._changed.emit();
    }
  }

  /** Ask to cancel the operation on a kernel; who waits for the operation learns whether it was cancelled. */
  async cancel(kernel: string): Promise<void> {
    try {
      await this.api.cancel(kernel);
    } catch (error) {
      console.info('Torpor:', error); // the operation had ended already
    }
  }

  /** Ask the server: one request at a time, and one more if this was called meanwhile. */
  refresh(): Promise<void> {
    if (this._asking) {
      this._again = true;
    } else {
      this._asking = this.ask();
    }
    return this._asking;
  }

  private async ask(): Promise<void> {
    try {
      do {
        this._again = false;
        const { _watched, _path, _stale } = this;
        this._stale = false;
        this._kernels = await this.api.kernels();
        const checkpoints = _watched ? await this.api.checkpoints(_watched) : [];
        const all = _path && _stale ? await this.api.allCheckpoints() : undefined;
        this._store = _stale || !this._store ? await this.api.store() : this._store;
        if (_watched !== this._watched || _path !== this._path) {
          continue; // asked for again already
        }
        this._checkpoints = checkpoints;
        if (all) {
          this._earlier = all.filter(({ kernel_id, path }) => path === _path && kernel_id !== _watched);
          const began = checkpoints.length ? checkpoints[0].parent : this.kernel(_watched)?.head;
          this._origin = all.find(({ id, kernel_id }) => id === began && kernel_id !== _watched);
        }
      } while (this._again);
      this._trouble = '';
    } catch (error) {
      // If the server is away JupyterLab says so itself. What was known stays on show.
      this._trouble = error instanceof Refusal ? error.reason : '';
      console.warn('Torpor:', error);
    } finally {
      this._asking = undefined;
    }
    if (this.isDisposed) {
      return;
    }
    this._changed.emit();
    if (this._timer === undefined && this._kernels.some(kernel => kernel.operation)) {
      this._timer = window.setTimeout(() => {
        this._timer = undefined;
        void this.refresh();
      }, PROGRESS_MS);
    }
  }

  get isDisposed(): boolean {
    return this._disposed;
  }

  dispose(): void {
    this._disposed = true;
    window.clearTimeout(this._timer);
    Signal.clearData(this);
  }

  private _kernels: IKernel[] = [];
  private _checkpoints: ICheckpoint[] = [];
  private _earlier: ICheckpoint[] = [];
  private _origin: ICheckpoint | undefined;
  private _store: IStore | undefined;
  private _own: () => unknown = () => undefined;
  private _trouble = '';
  private _watched: string | undefined;
  private _path: string | undefined;
  /** Whether there may be other checkpoints than those that are known. */
  private _stale = false;
  private _selected: string | undefined;
  private _asking: Promise<void> | undefined;
  private _again = false;
  private _disposed = false;
  private _timer: number | undefined;
  private readonly _asks = new Signal<this, void>(this);
  private readonly _interrupted = new Signal<this, string>(this);
  private readonly _changed = new Signal<this, void>(this);
}

function isRule(value: unknown): boolean {
  return typeof value === 'number' && value >= 0;
}
