import { HTMLSelect, ReactWidget } from '@jupyterlab/ui-components';
import * as React from 'react';
import { ICheckpoint, IDiff, IVariable } from './api';
import { TorporModel } from './model';
import { Words } from './words';

interface IProps {
  model: TorporModel;
  words: Words;
  /** All checkpoints of the kernel, oldest first. */
  checkpoints: readonly ICheckpoint[];
  earlier: string;
  later: string;
}

/** Two checkpoints of a kernel side by side: how its variables and its memory differ. */
export class Compare extends ReactWidget {
  constructor(private readonly props: IProps) {
    super();
    this.addClass('jp-Torpor-dialog');
    this.addClass('jp-Torpor-compare');
  }

  protected render(): JSX.Element {
    return <Sides {...this.props} />;
  }
}

function Sides(props: IProps): JSX.Element {
  const { model, words } = props;
  const { trans } = words;
  const [earlier, setEarlier] = React.useState(props.earlier);
  const [later, setLater] = React.useState(props.later);
  const [found, setFound] = React.useState<IDiff | string | undefined>();
  React.useEffect(() => {
    let current = true;
    setFound(undefined);
    model.api.diff(props.checkpoints[0].kernel_id, earlier, later).then(
      diff => current && setFound(diff),
      error => current && setFound(error instanceof Error ? error.message : `${error}`)
    );
    return () => {
      current = false;
    };
  }, [earlier, later]);
  return (
    <>
      <div className="jp-Torpor-sides">
        <Side {...props} label={trans.__('From')} value={earlier} choose={setEarlier} />
        <Side {...props} label={trans.__('To')} value={later} choose={setLater} />
      </div>
      <div role="status" aria-busy={found === undefined}>
        {found === undefined ? (
          <p className="jp-Torpor-faint">{trans.__('Comparing…')}</p>
        ) : typeof found === 'string' ? (
          <p className="jp-Torpor-warning">{trans.__('Cannot compare them: %1', found)}</p>
        ) : (
          <>
            <Variables diff={found} words={words} />
            <Memory diff={found} words={words} />
          </>
        )}
      </div>
    </>
  );
}

function Side(props: IProps & { label: string; value: string; choose: (id: string) => void }): JSX.Element {
  const { model, checkpoints, words, label, value, choose } = props;
  return (
    <label>
      <span>{label}</span>
      <HTMLSelect
        value={value}
        onChange={event => choose(event.target.value)}
        options={[...checkpoints].reverse().map(checkpoint => ({
          value: checkpoint.id,
          label: `${model.title(checkpoint)} · ${words.moment(checkpoint.created_ns)}`
        }))}
      />
    </label>
  );
}

function Variables({ diff, words }: { diff: IDiff; words: Words }): JSX.Element {
  const { trans } = words;
  if (!diff.variables) {
    return <p className="jp-Torpor-faint">{trans.__('The variables are unknown: %1', diff.why ?? '')}</p>;
  }
  const { added, changed, removed } = diff.variables;
  if (!added.length && !changed.length && !removed.length) {
    return <p>{trans.__('The variables are the same.')}</p>;
  }
  const rows = (kind: string, mark: string, what: string, variables: readonly IVariable[]): JSX.Element[] =>
    variables.map(variable => (
      <tr key={variable.name} className={`jp-mod-${kind}`}>
        <td>
          <span aria-hidden="true">{mark}</span>
          <span className="jp-Torpor-spoken">{what}</span>
        </td>
        <th scope="row">{variable.name}</th>
        <td>{variable.type}</td>
        <td title={value(variable)}>{value(variable)}</td>
      </tr>
    ));
  return (
    <div className="jp-Torpor-variables">
      <table>
        <caption className="jp-Torpor-spoken">{trans.__('Variables')}</caption>
        <thead>
          <tr>
            <th scope="col">
              <span className="jp-Torpor-spoken">{trans.__('Change')}</span>
            </th>
            <th scope="col">{trans.__('Variable')}</th>
            <th scope="col">{trans.__('Type')}</th>
            <th scope="col">{trans.__('Value')}</th>
          </tr>
        </thead>
        <tbody>
          {rows('added', '+', trans.__('new'), added)}
          {rows('changed', '±', trans.__('changed'), changed)}
          {rows('removed', '−', trans.__('deleted'), removed)}
        </tbody>
      </table>
    </div>
  );
}

function value({ summary, before }: IVariable): string {
  return before !== undefined && before !== summary ? `${before} → ${summary}` : summary;
}

function Memory({ diff, words }: { diff: IDiff; words: Words }): JSX.Element {
  const { trans } = words;
  const { shared, only_here, only_there } = diff.memory;
  const parts = [
    ['removed', only_there, trans.__('only before')],
    ['shared', shared, trans.__('the same')],
    ['added', only_here, trans.__('only after')]
  ] as const;
  const told = parts.map(([, bytes, what]) => `${words.size(bytes)} ${what}`);
  return (
    <div className="jp-Torpor-memory">
      <p>{trans.__('Memory: %1', told.join(' · '))}</p>
      <div className="jp-Torpor-bar" aria-hidden="true">
        {parts.map(([kind, bytes]) => (
          <div key={kind} className={`jp-mod-${kind}`} style={{ flexGrow: bytes }} />
        ))}
      </div>
    </div>
  );
}
