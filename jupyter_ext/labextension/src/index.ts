import { ILayoutRestorer, JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { ICommandPalette, Notification } from '@jupyterlab/apputils';
import { IFileBrowserFactory } from '@jupyterlab/filebrowser';
import { INotebookTracker, NotebookActions, NotebookPanel } from '@jupyterlab/notebook';
import { IRunningSessionManagers, IRunningSessions } from '@jupyterlab/running';
import { ISettingRegistry } from '@jupyterlab/settingregistry';
import { IStatusBar } from '@jupyterlab/statusbar';
import { ITranslator, nullTranslator, TranslationBundle } from '@jupyterlab/translation';
import { LabIcon } from '@jupyterlab/ui-components';
import { CommandRegistry } from '@lumino/commands';
import { ReadonlyPartialJSONObject } from '@lumino/coreutils';
import { Actions } from './actions';
import { Adopter } from './adopt';
import { ICheckpoint, IKernel, TorporAPI } from './api';
import { ParkedBanner } from './banner';
import { torporIcon } from './icon';
import { TorporModel } from './model';
import { TimelinePanel } from './panel';
import { ParkedLabel } from './parked';
import { parkedLabel } from './running';
import { Status } from './status';
import { Words } from './words';

const ID = 'torpor:plugin';
const KERNEL_COMMANDS = [
  'torpor:checkpoint',
  'torpor:park',
  'torpor:resume',
  'torpor:fork-now',
  'torpor:undo',
  'torpor:cancel',
  'torpor:delete-several'
] as const;

const plugin: JupyterFrontEndPlugin<void> = {
  id: ID,
  description: 'Saves kernels, parks and wakes them, and takes them back to a checkpoint.',
  autoStart: true,
  requires: [INotebookTracker],
  optional: [
    ICommandPalette,
    IFileBrowserFactory,
    ILayoutRestorer,
    IRunningSessionManagers,
    ISettingRegistry,
    IStatusBar,
    ITranslator
  ],
  activate
};

function activate(
  app: JupyterFrontEnd,
  notebooks: INotebookTracker,
  palette: ICommandPalette | null,
  browsers: IFileBrowserFactory | null,
  restorer: ILayoutRestorer | null,
  running: IRunningSessionManagers | null,
  registry: ISettingRegistry | null,
  statusBar: IStatusBar | null,
  translator: ITranslator | null
): void {
  const words = new Words(translator ?? nullTranslator);
  const { trans } = words;
  const { commands, serviceManager, shell } = app;
  const model = new TorporModel(new TorporAPI(serviceManager.serverSettings), serviceManager, words);
  let settings: ISettingRegistry.ISettings | undefined;
  if (registry) {
    void registry.load(ID).then(loaded => (settings = loaded));
  }
  const actions = new Actions(model, words, {
    of: kernel => notebooks.find(notebook => kernelOf(notebook) === kernel),
    kernel: content => kernelOf(notebooks.find(notebook => notebook.content === content) ?? null),
    open: async path => void (await commands.execute('docmanager:open', { path })),
    adopt: async kernel => void (await notebooks.currentWidget?.sessionContext.changeKernel({ id: kernel })),
    saved: () => settings?.get('saveNotebook').composite !== false
  });
  const panel = new TimelinePanel({ model, commands, words });
  const show = (): void => shell.activateById(panel.id);

  const current = (): IKernel | undefined => model.kernel(kernelOf(notebooks.currentWidget));
  addKernelCommands(commands, actions, current, trans);
  addCheckpointCommands(commands, actions, model, trans);
  commands.addCommand('torpor:show', { label: trans.__('Show Kernel Checkpoints'), execute: show });
  addImport(app, browsers, actions, trans);
  if (palette) {
    const category = trans.__('Kernel Operations');
    for (const command of [...KERNEL_COMMANDS, 'torpor:show', 'torpor:import']) {
      palette.addItem({ command, category });
    }
  }

  shell.add(panel, 'left', { rank: 350, type: 'Kernel Checkpoints' });
  restorer?.add(panel, panel.id);

  const watch = (): void => {
    const notebook = notebooks.currentWidget;
    model.watch(notebook?.context.localPath, kernelOf(notebook), () => notebook?.model?.getMetadata('torpor'));
  };
  notebooks.currentChanged.connect(watch);
  notebooks.widgetAdded.connect((_, notebook) => {
    notebook.contentHeader.addWidget(new ParkedBanner(notebook, model, words, actions));
    new Adopter(notebook, model);
    notebook.toolbar.addItem('torpor-parked', new ParkedLabel(notebook, model, words));
    notebook.sessionContext.kernelChanged.connect(() => {
      watch();
      void model.refresh();
    });
  });
  NotebookActions.executed.connect(() => void model.refresh()); // there is no event for the number of cells that have run
  model.interrupted.connect((_, kernel) => {
    if (notebooks.find(notebook => kernelOf(notebook) === kernel)) {
      Notification.info(
        trans.__('The kernel is parked. Waiting cells were cancelled. To interrupt a running cell, wake the kernel first.'),
        { autoClose: 8000 }
      );
    }
  });
  model.changed.connect(() => commands.notifyCommandChanged());

  if (running) {
    addParked(running, app, model, actions, trans);
  }
  statusBar?.registerStatusItem('torpor', {
    item: new Status(model, current, words, show),
    align: 'left',
    rank: 4,
    isActive: () => !!current()?.suitable,
    activeStateChanged: model.changed
  });
}

/** Add the commands for the kernel of the current notebook. */
function addKernelCommands(
  commands: CommandRegistry,
  actions: Actions,
  current: () => IKernel | undefined,
  trans: TranslationBundle
): void {
  const add = (
    id: (typeof KERNEL_COMMANDS)[number],
    label: string,
    caption: string,
    able: (kernel: IKernel) => boolean,
    act: (kernel: string) => Promise<void>,
    icon?: LabIcon
  ): void => {
    commands.addCommand(id, {
      label,
      caption,
      icon,
      isEnabled: () => {
        const kernel = current();
        return !!kernel && kernel.suitable && able(kernel);
      },
      execute: async () => {
        const kernel = current();
        if (kernel) {
          await act(kernel.id);
        }
      }
    });
  };
  const idle = (state: IKernel['state']) => (kernel: IKernel): boolean => kernel.state === state && !kernel.operation;
  add(
    'torpor:checkpoint',
    trans.__('Checkpoint Kernel'),
    trans.__('Checkpoint kernel: save its current state; it keeps running'),
    idle('living'),
    kernel => actions.save(kernel),
    torporIcon
  );
  add(
    'torpor:park',
    trans.__('Park Kernel'),
    trans.__('Park kernel: save it and free its memory until you wake it'),
    idle('living'),
    kernel => actions.park(kernel)
  );
  add(
    'torpor:resume',
    trans.__('Wake Parked Kernel'),
    trans.__('Wake parked kernel: it continues where it stopped'),
    idle('parked'),
    kernel => actions.resume(kernel)
  );
  add(
    'torpor:fork-now',
    trans.__('Fork Kernel'),
    trans.__('Fork kernel: a second one continues from here in its own notebook'),
    idle('living'),
    kernel => actions.forkNow(kernel)
  );
  add(
    'torpor:undo',
    trans.__('Undo Going Back'),
    trans.__('Undo going back: restore the kernel as it was before'),
    kernel => !kernel.operation && actions.canUndo(kernel.id),
    kernel => actions.undo(kernel)
  );
  add(
    'torpor:cancel',
    trans.__('Cancel Checkpoint Operation'),
    trans.__('Cancel the operation in progress; the kernel is then as before'),
    kernel => !!kernel.operation,
    kernel => actions.cancel(kernel)
  );
  add(
    'torpor:delete-several',
    trans.__('Delete Several Checkpoints…'),
    trans.__('Delete several checkpoints of the kernel'),
    kernel => !kernel.operation && actions.deletable(kernel.id).length > 0,
    kernel => actions.removeSeveral(kernel)
  );
}

/** Add the commands for a checkpoint: the one in the argument, else the one selected in the panel. */
function addCheckpointCommands(
  commands: CommandRegistry,
  actions: Actions,
  model: TorporModel,
  trans: TranslationBundle
): void {
  const add = (
    id: string,
    label: string,
    act: (checkpoint: ICheckpoint) => Promise<void>,
    able: (checkpoint: ICheckpoint) => boolean = () => true,
    isToggled?: () => boolean
  ): void => {
    const chosen = (args: ReadonlyPartialJSONObject): ICheckpoint | undefined =>
      model.checkpoint((args.checkpoint as string | undefined) ?? model.selected);
    commands.addCommand(id, {
      label,
      isEnabled: args => {
        const checkpoint = chosen(args);
        return !!checkpoint && able(checkpoint);
      },
      isToggleable: !!isToggled,
      isToggled,
      execute: async args => {
        const checkpoint = chosen(args);
        if (checkpoint) {
          await act(checkpoint);
        }
      }
    });
  };
  const idle = (checkpoint: ICheckpoint): boolean => !model.kernel(checkpoint.kernel_id)?.operation;
  const whole = (checkpoint: ICheckpoint): boolean => idle(checkpoint) && !checkpoint.damage;
  // A notebook that has another kernel by now would lose that one.
  const mine = ({ kernel_id }: ICheckpoint): boolean => kernel_id === (model.watched ?? kernel_id);
  add(
    'torpor:restore',
    trans.__('Go Back…'),
    checkpoint => actions.restore(checkpoint),
    checkpoint => whole(checkpoint) && mine(checkpoint)
  );
  add('torpor:fork', trans.__('Fork'), checkpoint => actions.fork(checkpoint), whole);
  add(
    'torpor:compare',
    trans.__('Compare…'),
    checkpoint => actions.compare(checkpoint),
    checkpoint => !checkpoint.damage && model.beside(checkpoint).length > 1
  );
  add('torpor:export', trans.__('Export'), checkpoint => actions.export(checkpoint), whole);
  add('torpor:rename', trans.__('Rename…'), checkpoint => actions.rename(checkpoint));
  add('torpor:note', trans.__('Edit Note…'), checkpoint => actions.writeNote(checkpoint));
  add(
    'torpor:pin',
    trans.__('Pin'),
    checkpoint => actions.pin(checkpoint),
    undefined,
    () => !!model.checkpoint(model.selected)?.pinned
  );
  add(
    'torpor:delete',
    trans.__('Delete…'),
    checkpoint => actions.remove(checkpoint),
    checkpoint => !checkpoint.pinned && model.kernel(checkpoint.kernel_id)?.snapshot !== checkpoint.id
  );
}

/** Add the commands that import a checkpoint: from a file that is asked for, or the one selected in the file browser. */
function addImport(
  app: JupyterFrontEnd,
  browsers: IFileBrowserFactory | null,
  actions: Actions,
  trans: TranslationBundle
): void {
  const { commands, docRegistry, serviceManager } = app;
  const label = trans.__('Import Kernel Checkpoint…');
  commands.addCommand('torpor:import', { label, execute: () => actions.import() });
  // The context menu of the file browser has the second one for files of this type.
  docRegistry.addFileType({
    name: 'torpor-checkpoint',
    displayName: trans.__('Kernel Checkpoint'),
    extensions: ['.torpor'],
    contentType: 'file',
    fileFormat: 'base64',
    icon: torporIcon
  });
  commands.addCommand('torpor:import-file', {
    label,
    icon: torporIcon,
    execute: async () => {
      const file = browsers?.tracker.currentWidget?.selectedItems().next().value;
      await actions.import(file && serviceManager.contents.localPath(file.path));
    }
  });
}

/** List the parked kernels in the Running panel: a click opens the notebook. */
function addParked(
  running: IRunningSessionManagers,
  app: JupyterFrontEnd,
  model: TorporModel,
  actions: Actions,
  trans: TranslationBundle
): void {
  const shutDown = async (id: string): Promise<void> => {
    await app.serviceManager.kernels.shutdown(id);
    await model.refresh();
  };
  const item = (kernel: IKernel): IRunningSessions.IRunningItem => {
    const path = kernel.sessions[0]?.path ?? '';
    return {
      icon: () => torporIcon,
      className: 'jp-Torpor-running',
      label: () => parkedLabel(path || kernel.name, trans.__('Wake'), () => void actions.resume(kernel.id)),
      labelTitle: () => trans.__('Parked kernel %1', kernel.id),
      open: () => void (path && app.commands.execute('docmanager:open', { path })),
      shutdown: () => void shutDown(kernel.id)
    };
  };
  // JupyterLab lists them among the running kernels, too.
  const style = document.head.appendChild(document.createElement('style'));
  model.changed.connect(() => {
    const ids = model.parked.map(({ id }) => `[data-context='${CSS.escape(id)}']`).join();
    const empty = `.jp-mod-kernelspec:has(.jp-mod-kernel):not(:has(.jp-mod-kernel:not(${ids})))`;
    style.textContent = ids && `.jp-RunningSessions-item:is(.jp-mod-kernel:is(${ids}), ${empty}) { display: none }`;
  });
  // Always the same array: the panel's first drawing shows what it was given when it was made, and it does not hear
  // of changes before that.
  const items: IRunningSessions.IRunningItem[] = [];
  running.add({
    name: trans.__('Parked Kernels'),
    running: () => {
      items.splice(0, items.length, ...model.parked.map(item));
      return items;
    },
    shutdownAll: () => model.parked.forEach(kernel => void shutDown(kernel.id)),
    refreshRunning: () => void model.refresh(),
    runningChanged: model.changed,
    shutdownLabel: trans.__('Shut Down'),
    shutdownAllLabel: trans.__('Shut Down All'),
    shutdownAllConfirmationText: trans.__(
      'Shut down all parked kernels? Their checkpoints stay, and can bring them back.'
    )
  });
}

function kernelOf(notebook: NotebookPanel | null): string | undefined {
  return notebook?.sessionContext.session?.kernel?.id;
}

export default plugin;
