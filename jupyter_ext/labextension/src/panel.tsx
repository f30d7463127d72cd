import {
  CommandToolbarButtonComponent,
  deleteIcon,
  LabIcon,
  ReactWidget,
  undoIcon,
  UseSignal
} from '@jupyterlab/ui-components';
import { CommandRegistry } from '@lumino/commands';
import * as React from 'react';
import { ICheckpoint, IKernel, Refusal } from './api';
import { compareIcon, forkIcon, pinIcon, torporIcon } from './icon';
import { TorporModel } from './model';
import { explain } from './notices';
import { Strip } from './strip';
import { IRow, rows } from './tree';
import { part, Words } from './words';

/** Pixels between two columns of the tree, and the height of a row. */
const COLUMN = 12;
const ROW = 46;
/** From how many checkpoints on they can be searched. */
const MANY = 4;

interface IProps {
  model: TorporModel;
  commands: CommandRegistry;
  words: Words;
}

/** The side panel: the checkpoints of the kernel of the notebook in front, as a tree in time. */
export class TimelinePanel extends ReactWidget {
  constructor(private readonly props: IProps) {
    super();
    this.id = 'torpor-timeline';
    this.addClass('jp-Torpor');
    this.title.icon = torporIcon;
    this.title.caption = props.words.trans.__('Kernel checkpoints');
    this.node.setAttribute('role', 'region');
    this.node.setAttribute('aria-label', this.title.caption);
  }

  protected render(): JSX.Element {
    return <UseSignal signal={this.props.model.changed}>{() => <Timeline {...this.props} />}</UseSignal>;
  }
}

/** How much the store holds, and what is saved and removed by itself. */
function Store({ model, words }: IProps): JSX.Element | null {
  const { store, rules } = model;
  if (!store || !rules) {
    return null;
  }
  const { trans } = words;
  const used = words.size(store.used);
  const told = [
    store.quota
      ? trans.__('The store holds %1 of at most %2.', used, words.size(store.quota))
      : trans.__('The store holds %1.', used),
    rules.checkpoint_every > 0 && trans.__('This kernel is saved every %1 minutes.', rules.checkpoint_every),
    rules.checkpoint_after > 0 && trans.__('It is saved after cells of %1 seconds or more.', rules.checkpoint_after),
    rules.keep_last > 0 && trans.__('Its last %1 automatic checkpoints are kept.', rules.keep_last)
  ];
  return (
    <p className="jp-Torpor-hint jp-Torpor-store" title={store.path}>
      {told.filter(Boolean).join(' ')}
    </p>
  );
}

function Timeline(props: IProps): JSX.Element {
  const { model, words, commands } = props;
  const { trans } = words;
  const kernel = model.kernel(model.watched);
  if (model.trouble) {
    return <p className="jp-Torpor-hint">{trans.__('Torpor does not work on this server: %1', model.trouble)}</p>;
  }
  const earlier = model.earlier.length > 0 && (
    <>
      <h2>{trans.__('Earlier kernels')}</h2>
      {kernel && (
        <p className="jp-Torpor-hint">{trans.__('To bring one back, fork it: the fork gets its own notebook.')}</p>
      )}
      <Tree {...props} checkpoints={model.earlier} head={null} label={trans.__('Checkpoints of earlier kernels')} />
    </>
  );
  if (!kernel) {
    return (
      <>
        <p className="jp-Torpor-hint">
          {model.path
            ? trans.__('This notebook has no kernel.')
            : trans.__('Open a notebook to see the checkpoints of its kernel.')}
        </p>
        {earlier}
      </>
    );
  }
  if (!kernel.suitable) {
    return (
      <p className="jp-Torpor-hint">
        {trans.__('This kernel was not started by Torpor: its kernelspec names another provisioner.')}
      </p>
    );
  }
  const path = kernel.sessions[0]?.path;
  const buttons = kernel.state === 'parked' ? ['torpor:resume'] : ['torpor:checkpoint', 'torpor:park'];
  return (
    <>
      <div className="jp-Torpor-head">
        <h2 title={path ?? kernel.id}>{path?.split('/').pop() ?? kernel.name}</h2>
        <State {...props} kernel={kernel} />
        {model.origin && (
          <div className="jp-Torpor-faint" title={words.moment(model.origin.created_ns)}>
            {trans.__('Fork of %1: %2', model.origin.path ?? model.origin.kernel_id, words.title(model.origin))}
          </div>
        )}
        {kernel.unsaved && <Unsaved {...props} kernel={kernel} />}
        <div className="jp-Torpor-buttons">
          {buttons.map(id => (
            <CommandToolbarButtonComponent key={id} commands={commands} id={id} label={commands.label(id)} />
          ))}
        </div>
      </div>
      {model.checkpoints.length === 0 ? (
        <p className="jp-Torpor-hint">
          {trans.__(
            'No checkpoints yet. A checkpoint keeps the whole kernel: variables, threads, open files, the running cell.'
          )}
        </p>
      ) : (
        <Found {...props} kernel={kernel} />
      )}
      {earlier}
      <Store {...props} />
    </>
  );
}

/** What the kernel does, or what is being done to it, with a way to give that up. */
function State({ kernel, model, words }: IProps & { kernel: IKernel }): JSX.Element {
  const { trans } = words;
  const operation = kernel.operation;
  const head = model.checkpoints.find(({ id }) => id === kernel.head);
  const cells = Math.max(0, kernel.execution_count - (head?.execution_count ?? 0));
  const state = operation
    ? words.doing(operation)
    : kernel.state === 'parked'
      ? trans.__('Parked since %1', words.moment(kernel.parked_ns ?? 0))
      : head && cells
        ? trans._n('%1 cell since %2', '%1 cells since %2', cells, words.short(head.created_ns))
        : trans.__('Running');
  return (
    <div className="jp-Torpor-state">
      <span role="status">{state}</span>
      {!operation && kernel.memory > 0 && (
        <span title={trans.__('Memory of the kernel: parking frees it')}>{words.size(kernel.memory)}</span>
      )}
      {operation && (
        <>
          <progress aria-label={state} max={1} value={part(operation)} />
          <button className="jp-Torpor-link" onClick={() => void model.cancel(kernel.id)}>
            {trans.__('Cancel')}
          </button>
        </>
      )}
    </div>
  );
}

/** Why the kernel could not be saved when that was tried last, and what that means for it. */
function Unsaved({ kernel, words }: IProps & { kernel: IKernel }): JSX.Element {
  const { trans } = words;
  const refusal = Refusal.of(0, kernel.unsaved!);
  const title = trans.__('Kernel not saved at %1', words.short(kernel.unsaved!.at_ns));
  return (
    <div className="jp-Torpor-unsaved">
      <p>
        {title}: {refusal.why}{' '}
        <button className="jp-Torpor-link" onClick={() => void explain(title, refusal, words)}>
          {trans.__('Details…')}
        </button>
      </p>
      <p className="jp-Torpor-faint">
        {kernel.at_stop === 'ended'
          ? trans.__('If the server stops, this kernel ends.')
          : trans.__('If the server stops, this kernel keeps running, and the next server finds it.')}
      </p>
    </div>
  );
}

/** The checkpoints of the kernel, or those that a word is found in. */
function Found(props: IProps & { kernel: IKernel }): JSX.Element {
  const { model, words, commands, kernel } = props;
  const { trans } = words;
  const [word, setWord] = React.useState('');
  const holds = (one: ICheckpoint): boolean =>
    [model.title(one), one.cell, one.note].some(text => text.toLowerCase().includes(word.toLowerCase()));
  const found = word ? model.checkpoints.filter(holds) : model.checkpoints;
  return (
    <>
      {model.checkpoints.length > 1 && (
        <Strip model={model} words={words} checkpoints={model.checkpoints} head={kernel.head} />
      )}
      {model.checkpoints.length >= MANY && (
        <div className="jp-Torpor-find">
          <input
            type="search"
            className="jp-mod-styled"
            aria-label={trans.__('Find checkpoints')}
            placeholder={trans.__('Find: name, cell, note')}
            value={word}
            onChange={event => setWord(event.target.value)}
          />
          {commands.isVisible('torpor:delete-several') && (
            <button
              className="jp-Torpor-link"
              disabled={!commands.isEnabled('torpor:delete-several')}
              onClick={() => void commands.execute('torpor:delete-several')}
            >
              {trans.__('Delete several…')}
            </button>
          )}
        </div>
      )}
      {found.length ? (
        <Tree {...props} checkpoints={found} head={kernel.head} label={trans.__('Checkpoints, newest first')} />
      ) : (
        <p className="jp-Torpor-hint">{trans.__('No checkpoint contains this text.')}</p>
      )}
    </>
  );
}

interface ITreeProps extends IProps {
  /** Oldest first. */
  checkpoints: readonly ICheckpoint[];
  /** The one that the kernel is at. */
  head: string | null;
  label: string;
}

function Tree(props: ITreeProps): JSX.Element {
  const { model, checkpoints, head, label, commands } = props;
  const tree = React.useRef<HTMLUListElement>(null);
  const drawn = rows(checkpoints);
  const columns = drawn.flatMap(row => [row.column, ...row.above, ...row.below, ...row.forks]);
  const width = COLUMN * (1 + Math.max(...columns));
  const at = Math.max(0, drawn.findIndex(row => row.checkpoint.id === model.selected));
  const select = (row: number): void => {
    const target = Math.max(0, Math.min(drawn.length - 1, row));
    model.selected = drawn[target].checkpoint.id;
    (tree.current?.children[target] as HTMLElement | undefined)?.focus();
  };
  const onKeyDown = (event: React.KeyboardEvent): void => {
    const steps: Record<string, number> = {
      ArrowDown: at + 1,
      ArrowUp: at - 1,
      Home: 0,
      End: drawn.length - 1
    };
    if (event.target instanceof HTMLButtonElement || event.altKey || event.ctrlKey || event.metaKey) {
      return;
    }
    if (event.key in steps) {
      select(steps[event.key]);
    } else if (event.key === 'Enter') {
      void commands.execute('torpor:restore');
    } else {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
  };
  return (
    <ul
      className="jp-Torpor-list"
      role="tree"
      aria-label={label}
      ref={tree}
      onKeyDown={onKeyDown}
    >
      {drawn.map((row, number) => (
        <Item
          key={row.checkpoint.id}
          {...props}
          row={row}
          width={width}
          here={row.checkpoint.id === head}
          active={number === at}
          place={[number + 1, drawn.length]}
        />
      ))}
    </ul>
  );
}

interface IItemProps extends IProps {
  row: IRow;
  width: number;
  here: boolean;
  active: boolean;
  place: [number, number];
}

function Item(props: IItemProps): JSX.Element {
  const { row, width, here, active, place, model, words, commands } = props;
  const { checkpoint } = row;
  const { trans } = words;
  const name = model.title(checkpoint);
  const when = words.moment(checkpoint.created_ns);
  const added = `+${words.size(checkpoint.written)}`;
  const facts = [
    name,
    when,
    added,
    checkpoint.note && trans.__('note: %1', checkpoint.note),
    here && trans.__('the kernel is here'),
    checkpoint.pinned && trans.__('pinned'),
    checkpoint.damage && trans.__('damaged: %1', checkpoint.damage)
  ].filter(Boolean);
  const classes = [
    'jp-Torpor-item',
    here && 'jp-mod-here',
    checkpoint.automatic && 'jp-mod-automatic',
    checkpoint.damage && 'jp-mod-damaged'
  ];
  const action = (icon: LabIcon, command: string, label: string, pressed?: boolean): JSX.Element | false =>
    commands.isVisible(command) && (
      <button
        title={commands.label(command)}
        aria-label={label}
        aria-pressed={pressed}
        disabled={!commands.isEnabled(command, { checkpoint: checkpoint.id })}
        tabIndex={active ? 0 : -1}
        onClick={() => void commands.execute(command, { checkpoint: checkpoint.id })}
      >
        <icon.react tag="span" width="16px" height="16px" />
      </button>
    );
  return (
    <li
      className={classes.filter(Boolean).join(' ')}
      role="treeitem"
      aria-label={facts.join(', ')}
      aria-level={row.level + 1}
      aria-posinset={place[0]}
      aria-setsize={place[1]}
      aria-selected={active}
      aria-current={here || undefined}
      tabIndex={active ? 0 : -1}
      data-checkpoint={checkpoint.id}
      onFocus={() => (model.selected = checkpoint.id)}
      onMouseDown={() => (model.selected = checkpoint.id)}
      title={[name, when, checkpoint.cell, checkpoint.note, checkpoint.damage].filter(Boolean).join('\n')}
    >
      <Rails row={row} width={width} />
      <div className="jp-Torpor-text">
        <div className="jp-Torpor-line">
          <span className="jp-Torpor-name">{name}</span>
          {checkpoint.pinned && <pinIcon.react tag="span" className="jp-Torpor-pinned" width="14px" height="14px" />}
          <span className="jp-Torpor-fact">{words.short(checkpoint.created_ns)}</span>
        </div>
        <div className="jp-Torpor-line">
          {checkpoint.note && !checkpoint.damage ? (
            <span className="jp-Torpor-note">{checkpoint.note.split('\n')[0]}</span>
          ) : (
            <span className="jp-Torpor-cell">{checkpoint.damage || checkpoint.cell.split('\n')[0]}</span>
          )}
          <span className="jp-Torpor-fact">{added}</span>
        </div>
      </div>
      <div className="jp-Torpor-actions">
        {action(undoIcon, 'torpor:restore', trans.__('Go back to “%1”', name))}
        {action(forkIcon, 'torpor:fork', trans.__('Fork “%1”', name))}
        {action(compareIcon, 'torpor:compare', trans.__('Compare “%1”', name))}
        {action(pinIcon, 'torpor:pin', trans.__('Pin “%1”', name), checkpoint.pinned)}
        {action(deleteIcon, 'torpor:delete', trans.__('Delete “%1”', name))}
      </div>
    </li>
  );
}

/** The lines of the tree beside an item. */
function Rails({ row, width }: { row: IRow; width: number }): JSX.Element {
  const x = (column: number): number => column * COLUMN + COLUMN / 2;
  const middle = ROW / 2;
  const at = x(row.column);
  const lines = [
    ...row.above.map(column => `M${x(column)} 0V${middle}`),
    ...row.below.map(column => `M${x(column)} ${middle}V${ROW}`),
    ...row.forks.map(column => `M${at} ${middle}C${x(column)} ${middle} ${x(column)} ${middle / 2} ${x(column)} 0`)
  ];
  return (
    <svg className="jp-Torpor-rails" width={width} height={ROW} aria-hidden="true">
      <path d={lines.join('')} />
      <circle cx={at} cy={middle} r={4} />
    </svg>
  );
}
