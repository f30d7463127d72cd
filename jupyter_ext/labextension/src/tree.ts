import { ICheckpoint } from './api';

/** A checkpoint and how many branches it is away from the first line. */
export interface ILeaf {
  checkpoint: ICheckpoint;
  level: number;
}

/**
 * A kernel's checkpoints as lines of a tree, newest first.
 *
 * Each goes on from its parent on the same level; only where a parent has several, the later ones branch off.
 */
export function leaves(checkpoints: readonly ICheckpoint[]): ILeaf[] {
  const levels = new Map<string, number>();
  const seen = new Map<string, number>();
  const found = checkpoints.map(checkpoint => {
    const parent = checkpoint.parent ?? '';
    const siblings = seen.get(parent) ?? 0;
    seen.set(parent, siblings + 1);
    const level = (levels.get(parent) ?? 0) + (siblings ? 1 : 0);
    levels.set(checkpoint.id, level);
    return { checkpoint, level };
  });
  return found.reverse();
}
