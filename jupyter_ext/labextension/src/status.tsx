import { GroupItem, ProgressBar, TextItem } from '@jupyterlab/statusbar';
import { ReactWidget, UseSignal } from '@jupyterlab/ui-components';
import * as React from 'react';
import { IKernel } from './api';
import { torporIcon } from './icon';
import { TorporModel } from './model';
import { part, Words } from './words';

/** In the status bar: the operation on the current kernel, else when it was last saved. A click opens the panel. */
export class Status extends ReactWidget {
  constructor(
    private readonly model: TorporModel,
    private readonly current: () => IKernel | undefined,
    private readonly words: Words,
    private readonly open: () => void
  ) {
    super();
    this.addClass('jp-mod-highlighted');
    this.addClass('jp-Torpor-status');
  }

  protected render(): JSX.Element {
    return <UseSignal signal={this.model.changed}>{() => this.item()}</UseSignal>;
  }

  private item(): JSX.Element {
    const { trans } = this.words;
    const kernel = this.current();
    const operation = kernel?.operation;
    const head = this.model.checkpoint(kernel?.head ?? undefined);
    const text = operation
      ? this.words.doing(operation)
      : kernel?.state === 'parked'
        ? trans.__('Kernel parked')
        : kernel?.unsaved
          ? trans.__('Kernel could not be saved')
          : head
            ? trans.__('Kernel saved %1', this.words.moment(head.created_ns))
            : trans.__('Kernel not saved');
    const done = operation ? part(operation) : undefined;
    return (
      <GroupItem
        spacing={4}
        role="button"
        tabIndex={0}
        title={trans.__('Show the kernel’s checkpoints')}
        onClick={this.open}
        onKeyDown={event => {
          if (event.key === 'Enter' || event.key === ' ') {
            event.preventDefault();
            this.open();
          }
        }}
      >
        <torporIcon.react tag="span" width="14px" height="14px" verticalAlign="middle" />
        <TextItem source={text} />
        {done !== undefined && (
          <span aria-hidden="true">
            <ProgressBar percentage={100 * done} />
          </span>
        )}
      </GroupItem>
    );
  }
}
