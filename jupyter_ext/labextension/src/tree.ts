import { ICheckpoint } from './api';

/** A checkpoint's row in the drawing of a kernel's history, newest first. */
export interface IRow {
  checkpoint: ICheckpoint;
  /** How many branches it is away from the first line. */
  level: number;
  /** The column that its point is in. */
  column: number;
  /** Columns of lines that pass through the row, above and below its point. */
  above: number[];
  below: number[];
  /** Columns of branches that begin at this checkpoint. */
  forks: number[];
}

interface IBranch {
  column: number;
  level: number;
  /** The oldest and the newest row that its line touches, oldest first. */
  first: number;
  last: number;
}

/**
 * A kernel's checkpoints (oldest first) as the rows of a tree, newest first.
 *
 * Each continues its parent in the same column; if a parent has several children, the later ones branch off. A column
 * is used again when the branch in it has ended.
 */
export function rows(checkpoints: readonly ICheckpoint[]): IRow[] {
  const branches: IBranch[] = [];
  const branchOf = new Map<string, IBranch>();
  const index = new Map(checkpoints.map((checkpoint, row) => [checkpoint.id, row]));
  const begun = new Map<number, IBranch[]>();
  const continued = new Set<string>();
  checkpoints.forEach((checkpoint, row) => {
    const parent = checkpoint.parent ?? '';
    const line = branchOf.get(parent);
    if (line && !continued.has(parent)) {
      continued.add(parent);
      line.last = row;
      branchOf.set(checkpoint.id, line);
      return;
    }
    const from = index.get(parent);
    const branch = { column: 0, level: line ? line.level + 1 : 0, first: from ?? row, last: row };
    if (from !== undefined) {
      begun.set(from, [...(begun.get(from) ?? []), branch]);
    }
    branches.push(branch);
    branchOf.set(checkpoint.id, branch);
  });
  branches.forEach((branch, number) => {
    const taken = branches
      .slice(0, number)
      .filter(other => other.first <= branch.last && branch.first <= other.last)
      .map(other => other.column);
    while (taken.includes(branch.column)) {
      branch.column += 1;
    }
  });
  const found = checkpoints.map((checkpoint, row) => {
    const { column, level } = branchOf.get(checkpoint.id) as IBranch;
    const begins = begun.get(row) ?? [];
    const passing = branches.filter(branch => branch.first <= row && row <= branch.last);
    return {
      checkpoint,
      level,
      column,
      above: passing.filter(branch => row < branch.last && !begins.includes(branch)).map(branch => branch.column),
      below: passing.filter(branch => row > branch.first).map(branch => branch.column),
      forks: begins.map(branch => branch.column)
    };
  });
  return found.reverse();
}

/** When a cell ran. Times are nanoseconds since the epoch, of checkpoints: a browser's clock may be another. */
export interface IRun {
  kernel: string;
  /** The checkpoint that the kernel went on from. */
  head: string | null;
  /** When the last checkpoint was made before it ran. */
  after: number;
  /** When the last checkpoint was made before the kernel went back; of one that has not, infinity. */
  until: number;
}

/** Whether a checkpoint has what a cell did; undefined if that is not known. */
export function holds(
  checkpoint: ICheckpoint,
  run: IRun,
  find: (id: string | null) => ICheckpoint | undefined
): boolean | undefined {
  if (run.kernel !== checkpoint.kernel_id || (run.head !== null && !find(run.head))) {
    return undefined; // where it ran was deleted
  }
  for (let at: ICheckpoint | undefined = checkpoint; at; at = find(at.parent)) {
    if (at.parent === run.head) {
      return run.after < at.created_ns && at.created_ns <= run.until;
    }
  }
  return false;
}

/** Where the point of a checkpoint is on a line from 0 to 1. */
export function place(number: number, count: number): number {
  return (number + 0.5) / count;
}

/** The checkpoint whose point is nearest to a place on the line. */
export function nearest(at: number, count: number): number {
  return Math.max(0, Math.min(count - 1, Math.floor(at * count)));
}

/** Which checkpoint a key leads to; undefined for other keys. */
export function moved(key: string, at: number | undefined, count: number): number | undefined {
  const now = at ?? count - 1;
  const steps: Record<string, number> = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: count - 1 };
  return key in steps ? Math.max(0, Math.min(count - 1, steps[key])) : undefined;
}
