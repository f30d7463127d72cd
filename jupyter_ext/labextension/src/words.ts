import { ITranslator, TranslationBundle } from '@jupyterlab/translation';
import { ICheckpoint, IOperation } from './api';

/** The texts on the screen, in the user's language. */
export class Words {
  readonly trans: TranslationBundle;

  constructor(translator: ITranslator) {
    this.trans = translator.load('torpor');
    this.locale = locale(translator.languageCode);
  }

  /** A number of bytes, readable: 4.0 GiB. */
  size(bytes: number): string {
    const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
    let unit = 0;
    while (bytes >= 1024 && unit < units.length - 1) {
      bytes /= 1024;
      unit += 1;
    }
    const digits = unit ? 1 : 0;
    const number = bytes.toLocaleString(this.locale, { minimumFractionDigits: digits, maximumFractionDigits: digits });
    return `${number} ${units[unit]}`;
  }

  /** A time, readable: without the date if it is today. Nanoseconds since the epoch. */
  moment(ns: number): string {
    const when = new Date(ns / 1e6);
    const today = when.toDateString() === new Date().toDateString();
    return today ? when.toLocaleTimeString(this.locale) : when.toLocaleString(this.locale);
  }

  /** The same, short. */
  short(ns: number): string {
    const when = new Date(ns / 1e6);
    const today = when.toDateString() === new Date().toDateString();
    const time: Intl.DateTimeFormatOptions = { hour: '2-digit', minute: '2-digit' };
    return when.toLocaleString(this.locale, today ? time : { month: 'short', day: 'numeric', ...time });
  }

  /** A checkpoint in a sentence, without a title in a title. */
  called(checkpoint: ICheckpoint): string {
    return checkpoint.reason === 'going-back'
      ? this.trans.__('the state of %1', this.moment(checkpoint.created_ns))
      : this.trans.__('“%1”', this.title(checkpoint));
  }

  /** A checkpoint's title; `about` finds the checkpoint that it refers to. */
  title(checkpoint: ICheckpoint, about?: (id: string) => ICheckpoint | undefined): string {
    const { name, execution_count, reason } = checkpoint;
    switch (reason) {
      case 'parked':
        return this.trans.__('Parked');
      case 'stopping':
        return this.trans.__('When the server stopped');
      case 'preempted':
        return this.trans.__('Before Slurm preempted the job');
      case 'idle':
        return this.trans.__('Parked when idle');
      case 'memory':
        return this.trans.__('Parked when memory ran low');
      case 'going-back': {
        const goal = about?.(checkpoint.about ?? '');
        return goal
          ? this.trans.__('Before going back to %1', this.called(goal))
          : this.trans.__('Before going back');
      }
    }
    if (name) {
      return name;
    }
    return execution_count ? this.trans.__('After cell [%1]', execution_count) : this.trans.__('Before the first cell');
  }

  /** The operation in progress. */
  doing(operation: IOperation): string {
    switch (operation.doing) {
      case 'saving':
        return this.trans.__('Saving the kernel…');
      case 'parking':
        return this.trans.__('Parking the kernel…');
      case 'waking':
        return this.trans.__('Waking the kernel…');
      case 'forking':
        return this.trans.__('Forking the kernel…');
      default:
        return this.trans.__('Going back…');
    }
  }

  private readonly locale: string | undefined;
}

/** The progress of an operation, from 0 to 1; undefined while that is not known. */
export function part(operation: IOperation): number | undefined {
  return operation.total ? Math.min(1, operation.done / operation.total) : undefined;
}

/** JupyterLab's language code as Intl has it; undefined, which means the browser's language, if Intl does not know it. */
function locale(code: string): string | undefined {
  try {
    return Intl.DateTimeFormat.supportedLocalesOf(code.replace('_', '-'))[0];
  } catch {
    return undefined;
  }
}
