import { ILayoutRestorer, JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { ICommandPalette } from '@jupyterlab/apputils';
import { INotebookTracker, NotebookPanel } from '@jupyterlab/notebook';
import { IRunningSessionManagers } from '@jupyterlab/running';
import { ISettingRegistry } from '@jupyterlab/settingregistry';
import { IStatusBar } from '@jupyterlab/statusbar';
import { ITranslator, nullTranslator, TranslationBundle } from '@jupyterlab/translation';
import { Widget } from '@lumino/widgets';
import { Actions } from './actions';
import { IKernel, TorporAPI } from './api';
import { ParkedBanner } from './banner';
import { torporIcon } from './icon';
import { TorporModel } from './model';
import { TimelinePanel } from './panel';
import { doing } from './words';

const ID = 'torpor:plugin';

const plugin: JupyterFrontEndPlugin<void> = {
  id: ID,
  description: 'Saves kernels, parks and wakes them, and takes them back to a checkpoint.',
  autoStart: true,
  requires: [INotebookTracker],
  optional: [
    ICommandPalette,
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
  restorer: ILayoutRestorer | null,
  running: IRunningSessionManagers | null,
  registry: ISettingRegistry | null,
  statusBar: IStatusBar | null,
  translator: ITranslator | null
): void {
  const trans = (translator ?? nullTranslator).load('torpor');
  const { commands, serviceManager, shell } = app;
  const model = new TorporModel(new TorporAPI(serviceManager.serverSettings), serviceManager);
  const actions = new Actions(model, trans);
  let settings: ISettingRegistry.ISettings | undefined;
  if (registry) {
    void registry.load(ID).then(loaded => (settings = loaded));
  }

  const current = (): IKernel | undefined => model.kernel(kernelOf(notebooks.currentWidget));
  const saveNotebook = async (): Promise<void> => {
    const context = notebooks.currentWidget?.context;
    if (context?.model.dirty && (settings?.composite.saveNotebook ?? true)) {
      await context.save();
    }
  };
  const able = (state: IKernel['state']) => (): boolean => {
    const kernel = current();
    return !!kernel && kernel.suitable && kernel.state === state && !kernel.operation;
  };

  commands.addCommand('torpor:checkpoint', {
    label: trans.__('Checkpoint Kernel'),
    caption: trans.__('Checkpoint kernel: keep it as it is now, and let it run on'),
    icon: torporIcon,
    isEnabled: able('living'),
    execute: async () => {
      const kernel = current();
      if (kernel) {
        await saveNotebook();
        await actions.save(kernel.id);
      }
    }
  });
  commands.addCommand('torpor:park', {
    label: trans.__('Park Kernel'),
    caption: trans.__('Park kernel: keep it, and free its memory until you wake it'),
    isEnabled: able('living'),
    execute: async () => {
      const kernel = current();
      if (kernel) {
        await saveNotebook();
        await actions.park(kernel.id);
      }
    }
  });
  commands.addCommand('torpor:resume', {
    label: trans.__('Wake Parked Kernel'),
    caption: trans.__('Wake parked kernel: it goes on where it was'),
    isEnabled: able('parked'),
    execute: async () => {
      const kernel = current();
      if (kernel) {
        await actions.resume(kernel.id);
      }
    }
  });
  commands.addCommand('torpor:show', {
    label: trans.__('Show Kernel Checkpoints'),
    execute: () => shell.activateById(panel.id)
  });
  if (palette) {
    const category = trans.__('Kernel Operations');
    for (const command of ['torpor:checkpoint', 'torpor:park', 'torpor:resume', 'torpor:show']) {
      palette.addItem({ command, category });
    }
  }

  const panel = new TimelinePanel({ model, actions, commands, trans });
  shell.add(panel, 'left', { rank: 350, type: 'Kernel Checkpoints' });
  restorer?.add(panel, panel.id);

  const watch = (): void => {
    model.watched = kernelOf(notebooks.currentWidget);
  };
  notebooks.currentChanged.connect(watch);
  notebooks.widgetAdded.connect((_, notebook) => {
    notebook.contentHeader.addWidget(new ParkedBanner(notebook, model, trans, actions));
    notebook.sessionContext.kernelChanged.connect(() => {
      watch();
      void model.refresh();
    });
  });
  model.changed.connect(() => commands.notifyCommandChanged());

  if (running) {
    addParked(running, app, model, trans);
  }
  statusBar?.registerStatusItem('torpor', {
    item: new Status(model, () => current(), trans),
    align: 'left',
    rank: 4,
    isActive: () => !!current()?.operation,
    activeStateChanged: model.changed
  });
}

/** The parked kernels in the panel of what runs: a click opens the notebook. */
function addParked(
  running: IRunningSessionManagers,
  app: JupyterFrontEnd,
  model: TorporModel,
  trans: TranslationBundle
): void {
  const shutDown = async (id: string): Promise<void> => {
    await app.serviceManager.kernels.shutdown(id);
    await model.refresh();
  };
  running.add({
    name: trans.__('Parked Kernels'),
    running: () =>
      model.parked.map(kernel => {
        const path = kernel.sessions[0]?.path ?? '';
        return {
          icon: () => torporIcon,
          label: () => path || kernel.name,
          labelTitle: () => trans.__('Parked kernel %1', kernel.id),
          open: () => void (path && app.commands.execute('docmanager:open', { path })),
          shutdown: () => void shutDown(kernel.id)
        };
      }),
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

/** What is being done to the kernel in front, in the status bar. */
class Status extends Widget {
  constructor(model: TorporModel, current: () => IKernel | undefined, trans: TranslationBundle) {
    super();
    this.addClass('jp-StatusBar-TextItem');
    model.changed.connect(() => {
      const operation = current()?.operation;
      this.node.textContent = operation ? doing(operation, trans) : '';
    });
  }
}

function kernelOf(notebook: NotebookPanel | null): string | undefined {
  return notebook?.sessionContext.session?.kernel?.id;
}

export default plugin;
