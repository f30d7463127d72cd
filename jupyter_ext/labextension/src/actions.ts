import { Dialog, InputDialog, Notification, showDialog } from '@jupyterlab/apputils';
import { Cell, CodeCell, ICellModel } from '@jupyterlab/cells';
import { Notebook, NotebookActions, NotebookPanel } from '@jupyterlab/notebook';
import { Compare } from './compare';
import { GoBack, LongText, Several } from './dialogs';
import { ICheckpoint, IDiff, IRestored, Refusal } from './api';
import { TorporModel } from './model';
import { INews, Notices } from './notices';
import { holds, IRun } from './tree';
import { Words } from './words';

/** The open notebooks, and a way to open another one. */
export interface INotebooks {
  /** The open notebook of a kernel. */
  of(kernel: string): NotebookPanel | undefined;
  /** The kernel of a notebook. */
  kernel(notebook: Notebook): string | undefined;
  open(path: string): Promise<void>;
  /** Give a kernel to the notebook in front. */
  adopt(kernel: string): Promise<void>;
  /** Whether the notebook file is saved with its kernel. */
  saved(): boolean;
}

/** How to undo going back. */
interface IWayBack {
  /** The checkpoint that the kernel went back to: undo is possible while it is the kernel's head. */
  from: string;
  to: string;
  notebook: boolean;
}

/** Errors of a kernel that cannot be saved in its current state. */
const UNSAVABLE = ['Refused', 'CheckpointFailed'];

/** The user's actions on a kernel. */
export class Actions {
  constructor(
    private readonly model: TorporModel,
    private readonly words: Words,
    private readonly notebooks: INotebooks
  ) {
    this.notices = new Notices(model, words);
    NotebookActions.executed.connect((_, { notebook, cell }) => this.note(cell, notebooks.kernel(notebook)));
    NotebookActions.executionScheduled.connect((_, { cell }) => unmark(cell));
  }

  /** Save a kernel as a checkpoint; it keeps running. */
  async save(kernel: string): Promise<void> {
    const { trans } = this.words;
    await this.saveNotebook(kernel);
    await this.notices.follow(
      kernel,
      this.model.api.save(kernel),
      trans.__('Kernel not saved; it keeps running'),
      made => ({
        message: trans.__('Kernel saved: %1', this.words.size(made.written)),
        actions: [{ label: trans.__('Name it…'), callback: () => void this.rename(made) }]
      })
    );
  }

  async park(kernel: string): Promise<void> {
    const { trans } = this.words;
    await this.saveNotebook(kernel);
    await this.notices.follow(
      kernel,
      this.model.api.park(kernel),
      trans.__('Kernel not parked; it keeps running'),
      () => ({
        message: trans.__('Kernel parked. When you wake it, it continues where it stopped.'),
        actions: [{ label: trans.__('Wake'), callback: () => void this.resume(kernel) }]
      })
    );
  }

  async resume(kernel: string): Promise<void> {
    const { trans } = this.words;
    await this.notices.follow(
      kernel,
      this.model.api.resume(kernel),
      trans.__('Kernel not woken; it stays parked'),
      () => ({ message: trans.__('The kernel is awake.') })
    );
  }

  /** Go back to a checkpoint, once the user has confirmed. */
  async restore(checkpoint: ICheckpoint, discard = false): Promise<void> {
    const { trans } = this.words;
    const title = this.words.called(checkpoint);
    const answer = await showDialog({
      title: trans.__('Go back to %1?', title),
      body: await this.warning(checkpoint, discard),
      defaultButton: discard ? 0 : 1,
      buttons: [
        Dialog.cancelButton({ label: trans.__('Cancel') }),
        discard
          ? Dialog.warnButton({ label: trans.__('Go back') })
          : Dialog.okButton({ label: trans.__('Go back') })
      ]
    });
    if (!answer.button.accept) {
      return;
    }
    const kernel = checkpoint.kernel_id;
    const notebook = answer.value?.notebook ?? false;
    const news = (back: IRestored): INews => ({
      message: back.notebook_failed
        ? trans.__('The kernel is back at %1. Its notebook is as it was: %2.', title, back.notebook_failed)
        : back.notebook_kept
          ? trans.__('The kernel is back at %1. The notebook as it was before is saved as %2.', title, back.notebook_kept)
          : trans.__('The kernel is back at %1.', title),
      actions: back.undo ? [{ label: trans.__('Undo'), callback: () => void this.undo(kernel) }] : []
    });
    const wayOn = (refusal: Refusal): Notification.IAction[] =>
      discard || !UNSAVABLE.includes(refusal.kind)
        ? []
        : [
            {
              label: trans.__('Go back anyway…'),
              caption: trans.__('The current state of the kernel will be lost'),
              callback: () => void this.restore(checkpoint, true)
            }
          ];
    await this.goBack(kernel, checkpoint.id, { discard, notebook }, news, wayOn);
  }

  /** Whether going back can be undone for a kernel: nothing was saved since. */
  canUndo(kernel: string): boolean {
    const way = this.ways.get(kernel);
    return !!way && this.model.kernel(kernel)?.head === way.from;
  }

  /** Undo going back: restore the state before. */
  async undo(kernel: string): Promise<void> {
    const way = this.ways.get(kernel);
    if (way) {
      await this.goBack(kernel, way.to, { discard: false, notebook: way.notebook }, () => ({
        message: this.words.trans.__('Undone: the kernel is as it was before you went back.')
      }));
    }
  }

  /** Start a second kernel from a checkpoint, and open its notebook. */
  async fork(checkpoint: ICheckpoint): Promise<void> {
    const { trans } = this.words;
    const made = await this.notices.follow(
      checkpoint.kernel_id,
      this.model.api.fork(checkpoint.kernel_id, checkpoint.id),
      trans.__('Could not fork the kernel'),
      fork => ({
        message: trans.__('A second kernel continues from %1 in %2.', this.words.called(checkpoint), fork.path ?? '')
      })
    );
    if (made?.path) {
      await this.notebooks.open(made.path);
    }
  }

  /** Fork a kernel as it is now. */
  async forkNow(kernel: string): Promise<void> {
    const { trans } = this.words;
    await this.saveNotebook(kernel);
    const made = await this.notices.follow(
      kernel,
      this.model.api.save(kernel),
      trans.__('Could not fork the kernel; it keeps running')
    );
    if (made) {
      await this.fork(made);
    }
  }

  /** Show how two checkpoints differ: at first this one and the one that it came from. */
  async compare(checkpoint: ICheckpoint): Promise<void> {
    const { trans } = this.words;
    const all = this.model.beside(checkpoint);
    const at = all.findIndex(other => other.id === checkpoint.id);
    const parent = this.model.checkpoint(checkpoint.parent ?? undefined) ?? all[at - 1] ?? all[at + 1];
    const [earlier, later] = all.indexOf(parent) < at ? [parent, checkpoint] : [checkpoint, parent];
    await showDialog({
      title: trans.__('Compare checkpoints'),
      body: new Compare({
        model: this.model,
        words: this.words,
        checkpoints: all,
        earlier: earlier.id,
        later: later.id
      }),
      buttons: [Dialog.okButton({ label: trans.__('Close') })]
    });
  }

  /** Write a checkpoint to a file, to carry the kernel to another machine. */
  async export(checkpoint: ICheckpoint): Promise<void> {
    const { trans } = this.words;
    const { kernel_id, id } = checkpoint;
    await this.notices.follow(
      kernel_id,
      this.model.api.export(kernel_id, id),
      trans.__('Could not export the checkpoint'),
      ({ path }) => ({ message: trans.__('The checkpoint is in %1. It holds all that the kernel has in memory.', path) })
    );
  }

  /** Take a checkpoint from such a file, and open its notebook. */
  async import(path?: string): Promise<void> {
    const { trans } = this.words;
    const answer = await InputDialog.getText({
      title: trans.__('Import a kernel checkpoint'),
      label: trans.__('File, as the file browser has it. It is a program that will run as you.'),
      text: path,
      placeholder: trans.__('folder/work-kernel1.torpor')
    });
    if (answer.button.accept && answer.value) {
      const found = await this.notices.follow(
        '',
        this.model.api.import(answer.value),
        trans.__('Could not import the checkpoint'),
        () => ({ message: trans.__('The checkpoint is imported. Fork it to wake its kernel.') })
      );
      if (found) {
        await this.notebooks.open(found.path);
      }
    }
  }

  async rename(checkpoint: ICheckpoint): Promise<void> {
    const { trans } = this.words;
    const answer = await InputDialog.getText({
      title: trans.__('Name of the checkpoint'),
      label: trans.__('Name'),
      text: checkpoint.reason ? '' : checkpoint.name,
      placeholder: this.model.title(checkpoint)
    });
    if (answer.button.accept && answer.value !== null) {
      const { kernel_id, id } = checkpoint;
      const changed = this.model.api.change(kernel_id, id, { name: answer.value });
      await this.notices.follow(kernel_id, changed, trans.__('Could not rename the checkpoint'));
    }
  }

  /** Ask for a checkpoint's note. */
  async writeNote(checkpoint: ICheckpoint): Promise<void> {
    const { trans } = this.words;
    const answer = await showDialog({
      title: trans.__('Note on %1', this.words.called(checkpoint)),
      body: new LongText(trans.__('Note'), checkpoint.note),
      focusNodeSelector: 'textarea',
      buttons: [
        Dialog.cancelButton({ label: trans.__('Cancel') }),
        Dialog.okButton({ label: trans.__('Save') })
      ]
    });
    if (answer.button.accept && answer.value !== null) {
      const { kernel_id, id } = checkpoint;
      const changed = this.model.api.change(kernel_id, id, { note: answer.value.trim() });
      await this.notices.follow(kernel_id, changed, trans.__('Could not save the note'));
    }
  }

  async pin(checkpoint: ICheckpoint): Promise<void> {
    const { kernel_id, id, pinned } = checkpoint;
    const changed = this.model.api.change(kernel_id, id, { pinned: !pinned });
    await this.notices.follow(kernel_id, changed, this.words.trans.__('The checkpoint could not be pinned'));
  }

  async remove(checkpoint: ICheckpoint): Promise<void> {
    const { trans } = this.words;
    const answer = await showDialog({
      title: trans.__('Delete %1?', this.words.called(checkpoint)),
      body: trans.__('You cannot undo this. Other checkpoints stay.'),
      buttons: [
        Dialog.cancelButton({ label: trans.__('Cancel') }),
        Dialog.warnButton({ label: trans.__('Delete') })
      ]
    });
    if (answer.button.accept) {
      const { kernel_id, id } = checkpoint;
      await this.notices.follow(
        kernel_id,
        this.model.api.remove(kernel_id, id),
        trans.__('Could not delete the checkpoint')
      );
    }
  }

  /** The checkpoints of a kernel that can be deleted: not what it is at, is parked in, or what is pinned. */
  deletable(kernel: string): ICheckpoint[] {
    const { head, snapshot } = this.model.kernel(kernel) ?? {};
    const all = [...this.model.checkpoints, ...this.model.earlier].filter(one => one.kernel_id === kernel);
    return all.filter(one => !one.pinned && one.id !== head && one.id !== snapshot);
  }

  /** Delete those of a kernel's checkpoints that the user chooses. */
  async removeSeveral(kernel: string): Promise<void> {
    const { trans } = this.words;
    const answer = await showDialog({
      title: trans.__('Delete several checkpoints'),
      body: new Several(this.deletable(kernel), one => this.model.title(one), this.words),
      buttons: [
        Dialog.cancelButton({ label: trans.__('Cancel') }),
        Dialog.warnButton({ label: trans.__('Delete') })
      ]
    });
    const ids = answer.button.accept ? (answer.value ?? []) : [];
    if (ids.length) {
      const remove = async (): Promise<number> => {
        let freed = 0;
        for (const id of ids) {
          freed += (await this.model.api.remove(kernel, id)).freed;
        }
        return freed;
      };
      await this.notices.follow(kernel, remove(), trans.__('Could not delete the checkpoint'), freed => ({
        message: trans._n('%1 checkpoint deleted: %2 are free', '%1 checkpoints deleted: %2 are free', ids.length, this.words.size(freed))
      }));
    }
  }

  async cancel(kernel: string): Promise<void> {
    await this.model.cancel(kernel);
  }

  /** Describe what going back would lose. */
  private async warning(checkpoint: ICheckpoint, discard: boolean): Promise<GoBack> {
    await this.model.refresh(); // there is no event for a cell that has run: ask for the count now
    const kernel = this.model.kernel(checkpoint.kernel_id);
    const head = this.model.checkpoint(kernel?.head ?? undefined);
    const since = head ? this.between(checkpoint, head) : 0;
    let diff: IDiff | undefined;
    if (since) {
      // Ask for confirmation even when nothing is known of the variables.
      diff = await this.model.api.diff(checkpoint.kernel_id, checkpoint.id, head!.id).catch(() => undefined);
    }
    const count = Math.max(0, (kernel?.execution_count ?? 0) - checkpoint.execution_count);
    return new GoBack(
      {
        checkpoint,
        cells: this.cells(checkpoint),
        count,
        busy: kernel?.execution_state === 'busy' && kernel.state === 'living',
        since,
        diff,
        discard,
        gone: !kernel
      },
      this.words
    );
  }

  /** How many checkpoints were made after one, up to a later one on the same branch; 0 if it is on another. */
  private between(earlier: ICheckpoint, later: ICheckpoint): number {
    let count = 0;
    for (let at: ICheckpoint | undefined = later; at; at = this.model.checkpoint(at.parent ?? undefined)) {
      if (at.id === earlier.id) {
        return count;
      }
      count += 1;
    }
    return 0;
  }

  /** The first lines of the notebook's cells that going back to a checkpoint undoes, in their order. */
  private cells(checkpoint: ICheckpoint): string[] {
    return this.lost(checkpoint.kernel_id, checkpoint, checkpoint.execution_count)
      .filter(cell => cell.node.dataset.torporUndone === undefined)
      .sort((one, other) => Number(one.model.executionCount) - Number(other.model.executionCount))
      .map(({ model }) => `[${model.executionCount}] ${model.sharedModel.getSource().trim().split('\n')[0]}`);
  }

  /**
   * The cells of a kernel's notebook whose work it does not have at a checkpoint. Of those that this page has not seen
   * run it is told by their numbers, of which `count` is the checkpoint's last.
   */
  private lost(kernel: string, checkpoint: ICheckpoint | undefined, count: number): CodeCell[] {
    return this.codeCells(kernel).filter(cell => {
      const run = this.runs.get(cell.model);
      const held = run && checkpoint && holds(checkpoint, run, id => this.model.checkpoint(id ?? undefined));
      const number = Number(cell.model.executionCount);
      return number > 0 && !(held ?? number <= count);
    });
  }

  private codeCells(kernel: string): CodeCell[] {
    const cells = this.notebooks.of(kernel)?.content.widgets ?? [];
    return cells.filter((cell): cell is CodeCell => cell instanceof CodeCell);
  }

  /** Note that a cell has run. */
  private note(cell: Cell, kernel: string | undefined): void {
    const found = this.model.kernel(kernel);
    if (found) {
      const run = { kernel: found.id, head: found.head, after: this.latest(found.id), until: Infinity };
      this.runs.set(cell.model, run);
    } else {
      this.runs.delete(cell.model);
    }
  }

  /** When the last of a kernel's checkpoints was made. */
  private latest(kernel: string): number {
    return Math.max(0, ...this.model.checkpoints.filter(one => one.kernel_id === kernel).map(one => one.created_ns));
  }

  /** Mark the cells that a kernel has not run as it is now; a notebook that went back, too, has none. */
  private markUndone(kernel: string, checkpoint: string, count: number, notebook: boolean): void {
    const when = this.words.trans.__('undone %1', this.words.short(Date.now() * 1e6));
    const undone = new Set(notebook ? [] : this.lost(kernel, this.model.checkpoint(checkpoint), count));
    for (const cell of this.codeCells(kernel)) {
      const run = this.runs.get(cell.model);
      if (run) {
        run.until = Math.min(run.until, this.latest(kernel));
      }
      if (undone.has(cell)) {
        cell.addClass('jp-mod-torporUndone');
        cell.node.dataset.torporUndone ??= when;
      } else {
        unmark(cell);
      }
    }
  }

  private async goBack(
    kernel: string,
    checkpoint: string,
    how: { discard: boolean; notebook: boolean },
    news: (back: IRestored) => INews,
    wayOn?: (refusal: Refusal) => Notification.IAction[]
  ): Promise<void> {
    const saved = await this.saveNotebook(kernel, how.notebook);
    if (how.notebook && !saved) {
      return; // changes that are not saved would be lost
    }
    const gone = !this.model.kernel(kernel);
    // What is typed into the notebook before it is read again is lost: only then is it said that the kernel is back.
    const restored = async (): Promise<IRestored> => {
      const told = await this.model.api.restore(kernel, checkpoint, how);
      if (how.notebook && !told.notebook_failed) {
        // JupyterLab shows why it cannot be read; the kernel has gone back nevertheless.
        await this.notebooks.of(kernel)?.context.revert().catch(() => undefined);
      }
      return told;
    };
    const back = await this.notices.follow(
      kernel,
      restored(),
      this.words.trans.__('Could not go back to the checkpoint'),
      news,
      wayOn
    );
    if (!back) {
      return;
    }
    this.markUndone(kernel, checkpoint, back.execution_count, how.notebook && !back.notebook_failed);
    if (back.undo) {
      this.ways.set(kernel, { from: checkpoint, to: back.undo, notebook: how.notebook });
    }
    if (gone) {
      await this.notebooks.adopt(kernel);
    }
  }

  /** Save a kernel's notebook; gives whether the file now holds what is on the screen. */
  private async saveNotebook(kernel: string, always = false): Promise<boolean> {
    const context = this.notebooks.of(kernel)?.context;
    if (context?.model.dirty && (always || this.notebooks.saved())) {
      try {
        await context.save();
      } catch {
        // JupyterLab has shown why.
      }
    }
    return !context?.model.dirty;
  }

  private readonly notices: Notices;
  /** When cells ran last. */
  private readonly runs = new WeakMap<ICellModel, IRun>();
  private readonly ways = new Map<string, IWayBack>();
}

function unmark(cell: Cell): void {
  cell.removeClass('jp-mod-torporUndone');
  delete cell.node.dataset.torporUndone;
}
