import { Dialog, InputDialog, Notification, showDialog } from '@jupyterlab/apputils';
import { TranslationBundle } from '@jupyterlab/translation';
import { ICheckpoint } from './api';
import { TorporModel } from './model';
import { moment, size, title } from './words';

/** How long good news stays, milliseconds. Bad news stays until it is read. */
const GLANCE_MS = 5000;

/** What a person can do to a kernel: each tells how it went, and the reason when it is refused. */
export class Actions {
  constructor(
    private readonly model: TorporModel,
    private readonly trans: TranslationBundle
  ) {}

  async save(kernel: string): Promise<void> {
    const { api } = this.model;
    const trans = this.trans;
    const made = await this.tell(
      trans.__('The kernel could not be saved, and runs on'),
      api.save(kernel)
    );
    if (made) {
      Notification.success(trans.__('Kernel saved: %1', size(made.written)), {
        autoClose: GLANCE_MS,
        actions: [{ label: trans.__('Name it…'), callback: () => void this.rename(made) }]
      });
    }
  }

  async park(kernel: string): Promise<void> {
    const trans = this.trans;
    if (await this.tell(trans.__('The kernel could not be parked, and runs on'), this.model.api.park(kernel))) {
      Notification.success(trans.__('Kernel parked. It goes on where it was when you wake it.'), {
        autoClose: GLANCE_MS,
        actions: [{ label: trans.__('Wake'), callback: () => void this.resume(kernel) }]
      });
    }
  }

  async resume(kernel: string): Promise<void> {
    const trans = this.trans;
    if (await this.tell(trans.__('The kernel could not be woken, and stays parked'), this.model.api.resume(kernel))) {
      Notification.success(trans.__('The kernel is awake.'), { autoClose: GLANCE_MS });
    }
  }

  /** Go back to a checkpoint, when the person agrees. */
  async restore(checkpoint: ICheckpoint): Promise<void> {
    const trans = this.trans;
    await this.model.refresh(); // cells tell nothing of themselves: how many have run is asked now
    const kernel = this.model.kernel(checkpoint.kernel_id);
    const since = (kernel?.execution_count ?? 0) - checkpoint.execution_count;
    const lost =
      since > 0
        ? trans._n('What %1 cell has computed since is undone.', 'What %1 cells have computed since is undone.', since)
        : trans.__('What it has computed since is undone.');
    const answer = await showDialog({
      title: trans.__('Go back to “%1”?', title(checkpoint, trans)),
      body: trans.__(
        'The kernel will be as it was at %1. %2 It is kept as a checkpoint, so that you can return. Files, and the notebook itself, stay as they are.',
        moment(checkpoint.created_ns),
        lost
      ),
      buttons: [
        Dialog.cancelButton({ label: trans.__('Cancel') }),
        Dialog.okButton({ label: trans.__('Go back') })
      ]
    });
    if (answer.button.accept) {
      await this.goBack(checkpoint.kernel_id, checkpoint.id, title(checkpoint, trans));
    }
  }

  async rename(checkpoint: ICheckpoint): Promise<void> {
    const trans = this.trans;
    const answer = await InputDialog.getText({
      title: trans.__('Name of the checkpoint'),
      text: checkpoint.name
    });
    if (answer.button.accept && answer.value !== null) {
      await this.tell(
        trans.__('The checkpoint could not be renamed'),
        this.model.api.change(checkpoint.kernel_id, checkpoint.id, { name: answer.value })
      );
    }
  }

  async pin(checkpoint: ICheckpoint): Promise<void> {
    await this.tell(
      this.trans.__('The checkpoint could not be pinned'),
      this.model.api.change(checkpoint.kernel_id, checkpoint.id, { pinned: !checkpoint.pinned })
    );
  }

  async remove(checkpoint: ICheckpoint): Promise<void> {
    const trans = this.trans;
    const answer = await showDialog({
      title: trans.__('Delete “%1”?', title(checkpoint, trans)),
      body: trans.__('It cannot be brought back. Other checkpoints are not touched.'),
      buttons: [
        Dialog.cancelButton({ label: trans.__('Cancel') }),
        Dialog.warnButton({ label: trans.__('Delete') })
      ]
    });
    if (answer.button.accept) {
      await this.tell(
        trans.__('The checkpoint could not be deleted'),
        this.model.api.remove(checkpoint.kernel_id, checkpoint.id)
      );
    }
  }

  private async goBack(kernel: string, checkpoint: string, name: string): Promise<void> {
    const trans = this.trans;
    const back = await this.tell(
      trans.__('The kernel could not be taken back'),
      this.model.api.restore(kernel, checkpoint)
    );
    if (back) {
      const undo = back.undo;
      Notification.success(trans.__('The kernel is as it was at “%1”.', name), {
        autoClose: 2 * GLANCE_MS,
        actions: undo
          ? [{ label: trans.__('Undo'), callback: () => void this.goBack(kernel, undo, trans.__('before')) }]
          : []
      });
    }
  }

  /** Wait for an answer; what went wrong is shown, and gives undefined. */
  private async tell<T>(failure: string, answer: Promise<T>): Promise<T | undefined> {
    try {
      return await answer;
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error);
      Notification.error(`${failure}: ${reason}`, { autoClose: false });
      return undefined;
    } finally {
      void this.model.refresh();
    }
  }
}
