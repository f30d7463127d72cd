import * as React from 'react';
import { ICheckpoint, IVariable } from './api';
import { TorporModel } from './model';
import { moved, nearest, place } from './tree';
import { Words } from './words';

/** How many variables are shown; the rest is only counted. */
const ENOUGH = 8;
/** How long the pointer stays on a checkpoint before the server is asked for its variables, milliseconds. */
const PAUSE_MS = 80;

interface IProps {
  model: TorporModel;
  words: Words;
  /** Oldest first. */
  checkpoints: readonly ICheckpoint[];
  head: string | null;
}

/** The variables at a checkpoint, or why they are not known. */
type Known = readonly IVariable[] | string;

/** A line with a point for each checkpoint: where one moves along it, it shows the variables that the kernel had then. */
export function Strip({ model, words, checkpoints, head }: IProps): JSX.Element {
  const { trans } = words;
  const [at, setAt] = React.useState<number | undefined>();
  const known = React.useRef(new Map<string, Known>());
  const [, draw] = React.useReducer((count: number) => count + 1, 0);
  const shown = at === undefined ? undefined : checkpoints[at];
  React.useEffect(() => {
    if (!shown || known.current.has(shown.id)) {
      return;
    }
    const { kernel_id, id } = shown;
    const timer = window.setTimeout(() => {
      model.api
        .variables(kernel_id, id)
        .then(
          ({ variables, why }) => known.current.set(id, variables ?? why ?? ''),
          error => known.current.set(id, error instanceof Error ? error.message : `${error}`)
        )
        .then(draw);
    }, PAUSE_MS);
    return () => window.clearTimeout(timer);
  }, [shown?.id]);
  const onPointer = (event: React.PointerEvent<HTMLElement>): void => {
    const { left, width } = event.currentTarget.getBoundingClientRect();
    setAt(nearest((event.clientX - left) / width, checkpoints.length));
  };
  const onKeyDown = (event: React.KeyboardEvent): void => {
    const to = moved(event.key, at, checkpoints.length);
    if (to !== undefined) {
      setAt(to);
      event.preventDefault();
      event.stopPropagation();
    }
  };
  const told = shown && `${model.title(shown)} · ${words.moment(shown.created_ns)}`;
  return (
    <div className="jp-Torpor-strip">
      <div
        className="jp-Torpor-points"
        role="slider"
        tabIndex={0}
        aria-label={trans.__('Variables at a checkpoint')}
        aria-valuemin={1}
        aria-valuemax={checkpoints.length}
        aria-valuenow={(at ?? checkpoints.length - 1) + 1}
        aria-valuetext={told ?? ''}
        onPointerMove={onPointer}
        onPointerLeave={() => setAt(undefined)}
        onClick={() => (model.selected = shown?.id ?? model.selected)}
        onKeyDown={onKeyDown}
        onBlur={() => setAt(undefined)}
      >
        {checkpoints.map(({ id }, number) => (
          <span
            key={id}
            className={[id === head && 'jp-mod-here', number === at && 'jp-mod-shown'].filter(Boolean).join(' ')}
            style={{ left: `${100 * place(number, checkpoints.length)}%` }}
          />
        ))}
      </div>
      {shown && (
        <div className="jp-Torpor-then" role="status">
          <div className="jp-Torpor-label">{told}</div>
          <Then known={known.current.get(shown.id)} words={words} />
        </div>
      )}
    </div>
  );
}

function Then({ known, words }: { known: Known | undefined; words: Words }): JSX.Element {
  const { trans } = words;
  if (known === undefined) {
    return <div className="jp-Torpor-faint">{trans.__('Reading…')}</div>;
  }
  if (typeof known === 'string') {
    return <div className="jp-Torpor-faint">{trans.__('The variables are unknown: %1', known)}</div>;
  }
  if (!known.length) {
    return <div className="jp-Torpor-faint">{trans.__('No variables')}</div>;
  }
  const more = known.length - ENOUGH;
  return (
    <>
      <table>
        <tbody>
          {known.slice(0, ENOUGH).map(({ name, type, summary }) => (
            <tr key={name} title={`${name}: ${type}`}>
              <th scope="row">{name}</th>
              <td>{summary || type}</td>
            </tr>
          ))}
        </tbody>
      </table>
      {more > 0 && <div className="jp-Torpor-faint">{trans._n('%1 more', '%1 more', more)}</div>}
    </>
  );
}
