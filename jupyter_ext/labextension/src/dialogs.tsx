import { Dialog } from '@jupyterlab/apputils';
import { ReactWidget } from '@jupyterlab/ui-components';
import { Widget } from '@lumino/widgets';
import * as React from 'react';
import { ICheckpoint, IDiff, IVariable, Refusal } from './api';
import { Words } from './words';

/** How many names a warning lists; it only counts the rest. */
const ENOUGH = 6;

/** Why something was refused: each object that prevents it, and what to do next. */
export class Why extends ReactWidget {
  constructor(
    private readonly refusal: Refusal,
    private readonly words: Words
  ) {
    super();
    this.addClass('jp-Torpor-dialog');
  }

  protected render(): JSX.Element {
    const { trans } = this.words;
    const { reason, advice, details, causes } = this.refusal;
    const what = (todo: string): string => trans.__('What to do: %1.', todo);
    return (
      <>
        {causes.length ? (
          <ul>
            {causes.map((cause, number) => (
              <li key={number}>
                {cause.why}.{cause.advice && <div>{what(cause.advice)}</div>}
              </li>
            ))}
          </ul>
        ) : (
          <p>{reason}</p>
        )}
        {advice && <p>{what(advice)}</p>}
        {details.length > 0 && (
          <details>
            <summary>{trans.__('Processes and descriptors')}</summary>
            <ul>
              {details.map(detail => (
                <li key={detail}>{detail}</li>
              ))}
            </ul>
          </details>
        )}
      </>
    );
  }
}

/** A text of several lines. JupyterLab's dialogs take Enter for themselves, wherever it is pressed. */
export class LongText extends Widget implements Dialog.IBodyWidget<string> {
  constructor(label: string, text: string) {
    super();
    this.addClass('jp-Torpor-dialog');
    this.area = this.node.appendChild(document.createElement('textarea'));
    this.area.className = 'jp-mod-styled';
    this.area.rows = 5;
    this.area.setAttribute('aria-label', label);
    this.area.value = text;
  }

  getValue(): string {
    return this.area.value;
  }

  protected onAfterAttach(): void {
    window.addEventListener('keydown', this.keep, true);
  }

  protected onBeforeDetach(): void {
    window.removeEventListener('keydown', this.keep, true);
  }

  private readonly keep = (event: KeyboardEvent): void => {
    if (event.key === 'Enter' && event.target === this.area && !event.ctrlKey && !event.metaKey) {
      event.stopImmediatePropagation();
    }
  };

  private readonly area: HTMLTextAreaElement;
}

/** A choice of checkpoints, of which those are ticked at first that the server made by itself. */
export class Several extends ReactWidget implements Dialog.IBodyWidget<string[]> {
  constructor(
    private readonly checkpoints: readonly ICheckpoint[],
    private readonly title_: (checkpoint: ICheckpoint) => string,
    private readonly words: Words
  ) {
    super();
    this.addClass('jp-Torpor-dialog');
    this.chosen = new Set(checkpoints.filter(one => one.automatic).map(one => one.id));
  }

  getValue(): string[] {
    return this.checkpoints.map(one => one.id).filter(id => this.chosen.has(id));
  }

  protected render(): JSX.Element {
    const { words } = this;
    const choose = (id: string, wanted: boolean): void => void (wanted ? this.chosen.add(id) : this.chosen.delete(id));
    return (
      <>
        <p>{words.trans.__('You cannot undo this. Pinned checkpoints, and the one that the kernel is at, are kept.')}</p>
        <ul className="jp-Torpor-several">
          {[...this.checkpoints].reverse().map(one => (
            <li key={one.id}>
              <label className="jp-Torpor-choice">
                <input
                  type="checkbox"
                  defaultChecked={this.chosen.has(one.id)}
                  onChange={event => choose(one.id, event.target.checked)}
                />
                <span>{this.title_(one)}</span>
                <span className="jp-Torpor-faint">
                  {words.moment(one.created_ns)} · {words.size(one.written)}
                </span>
              </label>
            </li>
          ))}
        </ul>
      </>
    );
  }

  private readonly chosen: Set<string>;
}

/** What is known of a kernel before it goes back. */
export interface ILoss {
  checkpoint: ICheckpoint;
  /** The first lines of the cells that have run since, as the notebook has them. */
  cells: string[];
  /** How many cells have run since, by the kernel's own count. */
  count: number;
  busy: boolean;
  /** Checkpoints that were made since, on the branch that the kernel is on. */
  since: number;
  /** How the last of them differs. */
  diff: IDiff | undefined;
  /** The current state of the kernel will not be saved. */
  discard: boolean;
  /** There is no such kernel any more. */
  gone: boolean;
}

/** The dialog before a kernel goes back: what is lost, what is kept, and whether the notebook goes back, too. */
export class GoBack extends ReactWidget implements Dialog.IBodyWidget<{ notebook: boolean }> {
  constructor(
    private readonly loss: ILoss,
    private readonly words: Words
  ) {
    super();
    this.addClass('jp-Torpor-dialog');
  }

  getValue(): { notebook: boolean } {
    return { notebook: this.notebook };
  }

  protected render(): JSX.Element {
    const { trans } = this.words;
    const { checkpoint, cells, count, busy, since, diff, discard, gone } = this.loss;
    const undone = [];
    if (count > 0) {
      undone.push(
        <li key="cells">
          {trans._n('%1 cell that has run since', '%1 cells that have run since', count)}
          {cells.length > 0 && (
            <ul className="jp-Torpor-code">
              {cells.slice(-ENOUGH).map((cell, number) => (
                <li key={number}>{cell}</li>
              ))}
            </ul>
          )}
        </li>
      );
    }
    if (busy) {
      undone.push(<li key="busy">{trans.__('The running cell: it will be aborted')}</li>);
    }
    if (diff?.variables) {
      const { added, changed, removed } = diff.variables;
      for (const [key, variables, text] of [
        ['added', added, trans.__('New variables: %1', names(added, this.words))],
        ['changed', changed, trans.__('Changed variables: %1', names(changed, this.words))],
        ['removed', removed, trans.__('Deleted variables: %1', names(removed, this.words))]
      ] as const) {
        if (variables.length) {
          undone.push(<li key={key}>{text}</li>);
        }
      }
    }
    const when = this.words.moment(checkpoint.created_ns);
    return (
      <>
        <p>
          {gone
            ? trans.__('The kernel is gone. It will come back as it was at %1.', when)
            : trans.__('The kernel will be as it was at %1.', when)}
        </p>
        {undone.length > 0 && (
          <>
            <p className="jp-Torpor-label">{trans.__('This will be undone:')}</p>
            <ul>{undone}</ul>
          </>
        )}
        {undone.length === 0 && !gone && <p>{trans.__('Everything it has computed since will be undone.')}</p>}
        {since > 0 && (
          <p>
            {trans._n(
              '%1 later checkpoint stays. What you run next starts a new branch.',
              '%1 later checkpoints stay. What you run next starts a new branch.',
              since
            )}
          </p>
        )}
        {discard ? (
          <p className="jp-Torpor-warning">{trans.__('The current state of the kernel is not saved. You cannot undo this.')}</p>
        ) : (
          !gone && <p>{trans.__('The current state of the kernel is saved as a checkpoint first, so that you can undo this.')}</p>
        )}
        <p>{trans.__('Files on disk stay as they are.')}</p>
        {checkpoint.has_notebook && (
          <label className="jp-Torpor-choice">
            <input type="checkbox" onChange={event => (this.notebook = event.target.checked)} />
            {trans.__('Also bring the notebook back, with its cells and outputs of that time')}
          </label>
        )}
      </>
    );
  }

  private notebook = false;
}

function names(variables: readonly IVariable[], words: Words): string {
  const named = variables.slice(0, ENOUGH).map(variable => variable.name);
  const more = variables.length - named.length;
  if (more > 0) {
    named.push(words.trans._n('%1 more', '%1 more', more));
  }
  return named.join(', ');
}
