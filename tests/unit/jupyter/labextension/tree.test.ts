import { holds, moved, nearest, place, rows } from '../src/tree';

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

test('a checkpoint holds what ran on the way to it', () => {
  const at = (id: string, parent: string | null, created_ns: number): any => ({ id, parent, created_ns, kernel_id: 'k' });
  const made = [at('a', null, 1), at('b', 'a', 2), at('c', 'b', 3), at('d', 'a', 4)];
  const held = (id: string, head: string | null, after: number, until = Infinity, kernel = 'k') =>
    holds(made.find(one => one.id === id)!, { kernel, head, after, until }, id => made.find(one => one.id === id));
  expect(held('a', null, 0)).toBe(true);
  expect(held('c', 'a', 1)).toBe(true);
  expect(held('d', 'a', 1)).toBe(true);
  expect(held('d', 'a', 1, 3)).toBe(false); // the kernel had gone back by then
  expect(held('b', 'a', 2)).toBe(false); // it was made before
  expect(held('d', 'b', 2)).toBe(false); // on another branch
  expect(held('b', 'gone', 2)).toBe(undefined);
  expect(held('b', 'a', 1, Infinity, 'another')).toBe(undefined);
});

test('each point on the line is nearest to its own place', () => {
  for (const count of [1, 2, 7]) {
    for (let number = 0; number < count; number += 1) {
      expect(nearest(place(number, count), count)).toBe(number);
    }
  }
  expect([nearest(-1, 3), nearest(1, 3), nearest(2, 3)]).toEqual([0, 2, 2]);
});

test('keys move along the line, from its end if it has not been entered yet', () => {
  expect(['ArrowLeft', 'ArrowRight', 'Home', 'End', 'a'].map(key => moved(key, undefined, 3))).toEqual([1, 2, 0, 2, undefined]);
  expect([moved('ArrowLeft', 0, 3), moved('ArrowRight', 1, 3)]).toEqual([0, 2]);
});
