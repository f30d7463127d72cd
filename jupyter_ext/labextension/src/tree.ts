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
 * Each goes on from its parent in the same column; only where a parent has several, the later ones branch off. A column
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
