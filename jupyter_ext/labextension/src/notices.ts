import { Dialog, Notification, showDialog } from '@jupyterlab/apputils';
import { IKernel, Refusal } from './api';
import { Why } from './dialogs';
import { TorporModel } from './model';
import { part, Words } from './words';

/** How long good news stays, milliseconds. Bad news stays until it is read. */
const GLANCE_MS = 8000;
/** What lasts longer than this is told while it lasts, milliseconds. */
const SOON_MS = 1000;

/** News of something that went well, or a way on from something that did not. */
export interface INews {
  message: string;
  actions?: Notification.IAction[];
}

/** Tells how something goes: while it lasts, with a way to cancel it; how it went; or why it did not. */
export class Notices {
  constructor(
    private readonly model: TorporModel,
    private readonly words: Words
  ) {}

  /**
   * Wait for an answer of the server, and tell what comes of it.
   *
   * `failure` says what did not happen, `wayOn` offers what can be done when the server refuses. What fails is told,
   * and gives undefined.
   */
  async follow<T>(
    kernel: string,
    answer: Promise<T>,
    failure: string,
    news?: (value: T) => INews,
    wayOn?: (refusal: Refusal) => Notification.IAction[]
  ): Promise<T | undefined> {
    const old = this.good.get(kernel);
    if (old) {
      Notification.dismiss(old); // what it offers may be no more
      this.good.delete(kernel);
    }
    const toast = new Toast(this.model, kernel, this.words);
    try {
      const value = await answer;
      await this.model.refresh(); // what is told can be seen
      if (news) {
        const { message, actions } = news(value);
        this.good.set(kernel, toast.end(message, 'success', actions, GLANCE_MS));
      } else {
        toast.dismiss();
      }
      return value;
    } catch (error) {
      if (error instanceof Refusal && error.kind === 'Cancelled') {
        toast.end(this.words.trans.__('Cancelled. The kernel is as it was.'), 'info', [], GLANCE_MS);
      } else {
        this.tell(toast, failure, error, wayOn);
      }
      void this.model.refresh();
      return undefined;
    }
  }

  private tell(
    toast: Toast,
    failure: string,
    error: unknown,
    wayOn?: (refusal: Refusal) => Notification.IAction[]
  ): void {
    const { trans } = this.words;
    const refusal = error instanceof Refusal ? error : new Refusal(0, String((error as Error).message ?? error));
    const actions = refusal.kind ? (wayOn?.(refusal) ?? []) : [];
    actions.push({
      label: trans.__('Details…'),
      caption: trans.__('Why, and what to do next'),
      callback: () =>
        void showDialog({
          title: failure,
          body: new Why(refusal, this.words),
          buttons: [Dialog.okButton({ label: trans.__('Close') })]
        })
    });
    toast.end(`${failure}: ${refusal.details[0] ?? refusal.reason}`, 'error', actions, false);
  }

  /** The last good news of each kernel. */
  private readonly good = new Map<string, string>();
}

/** One notification, from "it is being done" to how it went. */
class Toast {
  constructor(
    private readonly model: TorporModel,
    private readonly kernel: string,
    private readonly words: Words
  ) {
    this.timer = window.setTimeout(() => {
      model.changed.connect(this.follow, this);
      void model.refresh();
    }, SOON_MS);
  }

  /** Say how it ended, in the place of what was said while it lasted. Gives the notification's id. */
  end(
    message: string,
    type: 'success' | 'info' | 'error',
    actions: Notification.IAction[] = [],
    autoClose: number | false = false
  ): string {
    this.stop();
    const options = { autoClose, actions, progress: undefined };
    if (this.id && Notification.update({ id: this.id, message, type, ...options })) {
      return this.id;
    }
    return Notification.emit(message, type, options);
  }

  dismiss(): void {
    this.stop();
    if (this.id) {
      Notification.dismiss(this.id);
    }
  }

  private follow(): void {
    const kernel: IKernel | undefined = this.model.kernel(this.kernel);
    if (!kernel?.operation) {
      return;
    }
    const message = this.words.doing(kernel.operation);
    const progress = part(kernel.operation);
    if (this.id) {
      Notification.update({ id: this.id, message, progress });
      return;
    }
    this.id = Notification.emit(message, 'in-progress', {
      autoClose: false,
      progress,
      actions: [
        {
          label: this.words.trans.__('Cancel'),
          callback: event => {
            event.preventDefault(); // the notification stays, and tells how it ended
            void this.model.cancel(this.kernel);
          }
        }
      ]
    });
  }

  private stop(): void {
    window.clearTimeout(this.timer);
    this.model.changed.disconnect(this.follow, this);
  }

  private id: string | undefined;
  private readonly timer: number;
}
