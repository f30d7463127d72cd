import { Dialog, Notification, showDialog } from '@jupyterlab/apputils';
import { IKernel, Refusal } from './api';
import { Why } from './dialogs';
import { TorporModel } from './model';
import { part, Words } from './words';

/** How long a notice of success stays, milliseconds. One of a failure stays until it is dismissed. */
const GLANCE_MS = 8000;
/** An operation that takes longer than this shows its progress, milliseconds. */
const SOON_MS = 1000;

/** A notice of success, and what the user can do next. */
export interface INews {
  message: string;
  actions?: Notification.IAction[];
}

/** Notifications of an operation: its progress, with a button to cancel it, then its result or why it failed. */
export class Notices {
  constructor(
    private readonly model: TorporModel,
    private readonly words: Words
  ) {}

  /**
* Wait for the server's answer, and notify the user of the result.
   *
   * `failure` says what did not happen, `wayOn` gives buttons for a refusal of the server. A failure is shown, and gives
   * undefined.
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
      Notification.dismiss(old); // its buttons may not work any more
      this.good.delete(kernel);
    }
    const toast = new Toast(this.model, kernel, this.words);
    try {
      const value = await answer;
      await this.model.refresh(); // the panel shows the result before the notice does
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
      callback: () => void explain(failure, refusal, this.words)
    });
    toast.end(`${failure}: ${refusal.why}`, 'error', actions, false);
  }

  /** The last notice of success of each kernel. */
  private readonly good = new Map<string, string>();
}

/** Show why something was refused, and what to do next. */
export async function explain(title: string, refusal: Refusal, words: Words): Promise<void> {
  const buttons = [Dialog.okButton({ label: words.trans.__('Close') })];
  await showDialog({ title, body: new Why(refusal, words), buttons });
}

/** One notification, from the start of an operation to its result. */
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

  /** Show the result in place of the progress. Gives the notification's id. */
  end(
    message: string,
    type: 'success' | 'info' | 'error',
    actions: Notification.IAction[] = [],
    autoClose: number | false = false
  ): string {
    this.dismiss();
    return Notification.emit(message, type, { autoClose, actions });
  }

  /**
   * Take the progress away. It is not updated into a result: JupyterLab loses an update of a notification that is not
   * on the screen yet, and "Saving the kernel" would stay for good.
   */
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
            event.preventDefault(); // the notification stays, to show the result
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
