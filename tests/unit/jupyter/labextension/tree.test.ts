import { rows } from '../src/tree';

const checkpoint = (id: string, parent: string | null): any => ({ id, parent });
const drawn = (...made: [string, string | null][]) =>
  rows(made.map(([id, parent]) => checkpoint(id, parent))).map(row => [
    row.checkpoint.id,
    row.level,
    row.column,
    row.above,
    row.below,
    row.forks
  ]);

test('no checkpoints are no rows', () => expect(drawn()).toEqual([]));

test('a line without branches, newest first', () =>
  expect(drawn(['a', null], ['b', 'a'], ['c', 'b'])).toEqual([
    ['c', 0, 0, [], [0], []],
    ['b', 0, 0, [0], [0], []],
    ['a', 0, 0, [0], [], []]
  ]));

test('the later child of a parent branches off', () =>
  expect(drawn(['a', null], ['b', 'a'], ['c', 'a'])).toEqual([
    ['c', 1, 1, [], [1], []],
    ['b', 0, 0, [1], [0, 1], []],
    ['a', 0, 0, [0], [], [1]]
  ]));

test('a column is used again when its branch has ended', () => {
  const columns = drawn(['a', null], ['b', 'a'], ['c', 'a'], ['d', 'b'], ['e', 'd'], ['f', 'd']).map(row => row[2]);
  expect(columns).toEqual([1, 0, 0, 1, 0, 0]);
});

test('a checkpoint whose parent was deleted begins a line of its own', () =>
  expect(drawn(['b', 'gone'], ['c', 'b']).map(row => [row[0], row[1]])).toEqual([
    ['c', 0],
    ['b', 0]
  ]));
