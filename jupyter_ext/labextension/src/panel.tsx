import { TranslationBundle } from '@jupyterlab/translation';
import {
  CommandToolbarButtonComponent,
  deleteIcon,
  editIcon,
  LabIcon,
  ReactWidget,
  undoIcon,
  UseSignal
} from '@jupyterlab/ui-components';
import { CommandRegistry } from '@lumino/commands';
import * as React from 'react';
import { Actions } from './actions';
import { ICheckpoint, IKernel } from './api';
import { pinIcon, torporIcon } from './icon';
import { TorporModel } from './model';
import { leaves } from './tree';
import { doing, moment, size, title } from './words';

interface IProps {
  model: TorporModel;
  actions: Actions;
  commands: CommandRegistry;
  trans: TranslationBundle;
}

/** The side panel: the checkpoints of the kernel of the notebook in front, as a tree in time. */
export class TimelinePanel extends ReactWidget {
  constructor(private readonly props: IProps) {
    super();
    this.id = 'torpor-timeline';
    this.addClass('jp-Torpor');
    this.title.icon = torporIcon;
    this.title.caption = props.trans.__('Kernel checkpoints');
    this.node.setAttribute('role', 'region');
    this.node.setAttribute('aria-label', this.title.caption);
  }

  protected render(): JSX.Element {
    return <UseSignal signal={this.props.model.changed}>{() => <Timeline {...this.props} />}</UseSignal>;
  }
}

function Timeline(props: IProps): JSX.Element {
  const { model, trans, commands } = props;
  const kernel = model.kernel(model.watched);
  if (!kernel) {
    return <p className="jp-Torpor-hint">{trans.__('Open a notebook with a kernel to see its checkpoints.')}</p>;
  }
  if (!kernel.suitable) {
    return (
      <p className="jp-Torpor-hint">
        {trans.__('This kernel was not started by Torpor: its kernelspec names another provisioner.')}
      </p>
    );
  }
  const session = kernel.sessions[0];
  const here = model.checkpoints;
  return (
    <>
      <div className="jp-Torpor-head">
        <div className="jp-Torpor-title" title={session?.path ?? kernel.id}>
          {session?.path ?? kernel.name}
        </div>
        <State kernel={kernel} trans={trans} />
        {(kernel.state === 'parked' ? ['torpor:resume'] : ['torpor:checkpoint', 'torpor:park']).map(id => (
          <CommandToolbarButtonComponent key={id} commands={commands} id={id} label={commands.label(id)} />
        ))}
      </div>
      {here.length === 0 ? (
        <p className="jp-Torpor-hint">
          {trans.__('A checkpoint keeps the whole kernel: variables, threads, open files, the running cell.')}
        </p>
      ) : (
        <ul className="jp-Torpor-list" role="tree" aria-label={trans.__('Checkpoints, newest first')}>
          {leaves(here).map(leaf => (
            <Leaf key={leaf.checkpoint.id} {...props} {...leaf} here={leaf.checkpoint.id === kernel.head} />
          ))}
        </ul>
      )}
    </>
  );
}

function State({ kernel, trans }: { kernel: IKernel; trans: TranslationBundle }): JSX.Element {
  const operation = kernel.operation;
  if (operation) {
    return (
      <div className="jp-Torpor-state" role="status">
        {doing(operation, trans)}
      </div>
    );
  }
  const words =
    kernel.state === 'parked'
      ? trans.__('Parked since %1', moment(kernel.parked_ns ?? 0))
      : trans.__('Running');
  return (
    <div className="jp-Torpor-state" role="status">
      {words}
    </div>
  );
}

function Leaf(props: IProps & { checkpoint: ICheckpoint; level: number; here: boolean }): JSX.Element {
  const { checkpoint, level, here, actions, trans } = props;
  const name = title(checkpoint, trans);
  const facts = [moment(checkpoint.created_ns), size(checkpoint.written)];
  if (checkpoint.pinned) {
    facts.push(trans.__('pinned'));
  }
  if (here) {
    facts.unshift(trans.__('here'));
  }
  if (checkpoint.damage) {
    facts.push(trans.__('damaged: %1', checkpoint.damage));
  }
  const classes = ['jp-Torpor-item', here && 'jp-mod-here', checkpoint.automatic && 'jp-mod-automatic'];
  const onKeyDown = (event: React.KeyboardEvent<HTMLElement>): void => {
    if (event.target !== event.currentTarget) {
      return;
    }
    const move = { ArrowDown: 'nextElementSibling', ArrowUp: 'previousElementSibling' }[event.key] as
      | 'nextElementSibling'
      | undefined;
    if (move) {
      (event.currentTarget[move] as HTMLElement | null)?.focus();
    } else if (event.key === 'Enter') {
      void actions.restore(checkpoint);
    } else if (event.key === 'F2') {
      void actions.rename(checkpoint);
    } else if (event.key === 'Delete') {
      void actions.remove(checkpoint);
    } else {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
  };
  return (
    <li
      className={classes.filter(Boolean).join(' ')}
      style={{ marginLeft: 16 * level }}
      role="treeitem"
      aria-level={level + 1}
      aria-current={here || undefined}
      tabIndex={0}
      onKeyDown={onKeyDown}
      title={checkpoint.note || trans.__('Enter: go back. F2: rename. Delete: delete.')}
    >
      <div className="jp-Torpor-name">{name}</div>
      {checkpoint.cell && <div className="jp-Torpor-cell">{checkpoint.cell}</div>}
      <div className="jp-Torpor-facts">{facts.join(' · ')}</div>
      <div className="jp-Torpor-actions">
        {action(undoIcon, trans.__('Go back to “%1”', name), () => actions.restore(checkpoint))}
        {action(pinIcon, trans.__('Pin “%1”', name), () => actions.pin(checkpoint), checkpoint.pinned)}
        {action(editIcon, trans.__('Rename “%1”', name), () => actions.rename(checkpoint))}
        {action(deleteIcon, trans.__('Delete “%1”', name), () => actions.remove(checkpoint))}
      </div>
    </li>
  );
}

function action(icon: LabIcon, label: string, act: () => Promise<void>, pressed?: boolean): JSX.Element {
  return (
    <button title={label} aria-label={label} aria-pressed={pressed} onClick={() => void act()}>
      <icon.react tag="span" width="16px" />
    </button>
  );
}
