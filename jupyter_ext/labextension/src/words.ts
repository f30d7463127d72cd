import { TranslationBundle } from '@jupyterlab/translation';
import { ICheckpoint, IOperation } from './api';

/** Bytes for people: 4.0 GiB. */
export function size(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let unit = 0;
  while (bytes >= 1024 && unit < units.length - 1) {
    bytes /= 1024;
    unit += 1;
  }
  return `${unit ? bytes.toFixed(1) : bytes} ${units[unit]}`;
}

/** A moment for people: the time of today, else the date as well. */
export function moment(ns: number): string {
  const when = new Date(ns / 1e6);
  const today = when.toDateString() === new Date().toDateString();
  return today ? when.toLocaleTimeString() : when.toLocaleString();
}

/** What a checkpoint is called on the screen. */
export function title(checkpoint: ICheckpoint, trans: TranslationBundle): string {
  return checkpoint.name || trans.__('After cell [%1]', checkpoint.execution_count || ' ');
}

/** What is being done, with how far it is. */
export function doing(operation: IOperation, trans: TranslationBundle): string {
  const words = {
    saving: trans.__('Saving the kernel…'),
    parking: trans.__('Parking the kernel…'),
    waking: trans.__('Waking the kernel…'),
    restoring: trans.__('Going back…')
  };
  const part = operation.total ? ` ${Math.floor((100 * operation.done) / operation.total)} %` : '';
  return words[operation.doing] + part;
}
