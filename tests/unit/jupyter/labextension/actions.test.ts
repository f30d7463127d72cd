import { Actions } from '../src/actions';
import { Refusal } from '../src/api';

const mockAnswers: any[] = [];
const mockDialogs: any[] = [];
const mockAsked: any[] = [];
const mockFollowed: { failure: string; message?: string; actions?: any[]; ways?: any[] }[] = [];
jest.mock('@jupyterlab/apputils', () => ({
  Dialog: { cancelButton: () => 'cancel', okButton: () => 'ok', warnButton: () => 'warn' },
  showDialog: async (options: any) => {
    mockDialogs.push(options);
    return mockAnswers.shift();
  },
  InputDialog: {
    getText: async (options: any) => {
      mockAsked.push(options);
      return mockAnswers.shift();
    }
  }
}));
jest.mock('@jupyterlab/cells', () => ({
  CodeCell: class {
    model: any;
    readonly classes = new Set<string>();
    readonly node = { dataset: {} as Record<string, string> };
    addClass = (name: string) => this.classes.add(name);
    removeClass = (name: string) => this.classes.delete(name);
    constructor(count: number, source: string) {
      this.model = { executionCount: count, sharedModel: { getSource: () => source } };
    }
  }
}));
let mockRan: (sender: unknown, told: { cell: any; notebook?: string }) => void;
let mockScheduled: typeof mockRan;
jest.mock('@jupyterlab/notebook', () => ({
  NotebookActions: {
    executed: { connect: (call: typeof mockRan) => (mockRan = call) },
    executionScheduled: { connect: (call: typeof mockRan) => (mockScheduled = call) }
  }
}));
jest.mock('../src/compare', () => ({ Compare: class { constructor(readonly props: any) {} } }));
jest.mock('../src/dialogs', () => ({
  GoBack: class { constructor(readonly loss: any) {} },
  LongText: class { constructor(readonly label: string, readonly text: string) {} },
  Several: class { constructor(readonly checkpoints: any[]) {} }
}));
jest.mock('../src/notices', () => ({
  Notices: class {
    async follow(_: string, answer: Promise<unknown>, failure: string, news?: any, wayOn?: any) {
      try {
        const value = await answer;
        mockFollowed.push({ failure, ...news?.(value) });
        return value;
      } catch (error) {
        mockFollowed.push({ failure, ways: wayOn?.(error) });
        return undefined;
      }
    }
  }
}));

const { CodeCell } = jest.requireMock('@jupyterlab/cells');
const words: any = {
  trans: {
    _n: (_one: string, _many: string, count: number, value: unknown) => `${count}: ${value}`,
    __: (text: string, ...values: unknown[]) => values.reduce<string>((all, one, at) => all.replace(`%${at + 1}`, String(one)), text)
  },
  size: (bytes: number) => `${bytes} B`,
  short: () => '12:03',
  called: (one: any) => `“${one.name}”`
};
const checkpoint = (id: string, parent: string | null = null, known: object = {}): any => ({
  id, parent, created_ns: 0, kernel_id: 'k', execution_count: 1, name: id, reason: '', note: '', pinned: false, ...known
});

class Rig {
  asked: any[] = [];
  kernel: any = { id: 'k', state: 'living', head: 'c', execution_count: 3, execution_state: 'idle' };
  made = [checkpoint('a'), checkpoint('b', 'a'), checkpoint('c', 'b'), checkpoint('side', 'a')];
  refusal: Refusal | undefined;
  context: any = { model: { dirty: false }, save: async () => (this.context.model.dirty = false), revert: async () => undefined };
  cells: any[] = [];
  adopted: string[] = [];
  opened: string[] = [];

  private async answer(what: any[], found: unknown): Promise<any> {
    this.asked.push(what);
    if (this.refusal) {
      throw this.refusal;
    }
    return found;
  }

  readonly model: any = {
    api: {
      save: (kernel: string) => this.answer(['save', kernel], checkpoint('d', 'c', { written: 5 })),
      restore: (kernel: string, id: string, how: object) => this.answer(['restore', kernel, id, how], { undo: 'u', execution_count: 1 }),
      fork: (kernel: string, id: string) => this.answer(['fork', kernel, id], { path: 'b.ipynb' }),
      diff: (kernel: string, one: string, two: string) => this.answer(['diff', kernel, one, two], { memory: {} }),
      change: (kernel: string, id: string, what: object) => this.answer(['change', id, what], {}),
      export: (kernel: string, id: string) => this.answer(['export', id], { path: 'work-kernel1.torpor' }),
      import: (path: string) => this.answer(['import', path], { path: 'work.ipynb' }),
      remove: (kernel: string, id: string) => this.answer(['remove', id], { freed: 5 })
    },
    refresh: async () => undefined,
    kernel: (id?: string) => (id === 'k' ? this.kernel : undefined),
    checkpoints: this.made,
    earlier: [],
    checkpoint: (id?: string) => this.made.find(one => one.id === id),
    beside: () => this.made,
    title: (one: any) => one.name
  };
  readonly actions = new Actions(this.model, words, {
    of: () => ({ context: this.context, content: { widgets: this.cells } }) as any,
    kernel: notebook => notebook as any,
    open: async path => void this.opened.push(path),
    adopt: async kernel => void this.adopted.push(kernel),
    saved: () => true
  });
}

const yes = (value: object | null = null) => mockAnswers.push({ button: { accept: true }, value });
const no = () => mockAnswers.push({ button: { accept: false }, value: null });
beforeEach(() => [mockAnswers, mockAsked, mockDialogs, mockFollowed].forEach(one => one.splice(0)));

test('the notebook is saved with its kernel', async () => {
  const rig = new Rig();
  rig.context.model.dirty = true;
  await rig.actions.save('k');
  expect([rig.context.model.dirty, rig.asked]).toEqual([false, [['save', 'k']]]);
  expect(mockFollowed[0].message).toBe('Kernel saved: 5 B');
});

test('nothing goes back without a yes', async () => {
  const rig = new Rig();
  no();
  await rig.actions.restore(rig.made[1]);
  expect(rig.asked.map(one => one[0])).toEqual(['diff']);
  expect(mockDialogs[0].buttons).toEqual(['cancel', 'ok']);
});

test('what is lost by going back is told: cells in their order, checkpoints since, and what differs', async () => {
  const rig = new Rig();
  const [old, first, again] = [new CodeCell(1, 'x = 1'), new CodeCell(3, 'y = 3\nmore'), new CodeCell(3, 'z = 3')];
  rig.cells = [again, first, old, new CodeCell(2, 'w = 2')];
  first.node.dataset.torporUndone = 'undone 12:00';
  no();
  await rig.actions.restore(rig.made[0]);
  const { loss } = mockDialogs[0].body;
  expect([loss.cells, loss.count, loss.since, loss.gone]).toEqual([['[2] w = 2', '[3] z = 3'], 2, 2, false]);
  expect(rig.asked).toEqual([['diff', 'k', 'a', 'c']]);
  no();
  await rig.actions.restore(rig.made[3]);
  expect([mockDialogs[1].body.loss.since, mockDialogs[1].body.loss.diff]).toEqual([0, undefined]); // another branch
});

test('a going back can be undone until the kernel goes on', async () => {
  const rig = new Rig();
  expect(rig.actions.canUndo('k')).toBe(false);
  yes({ notebook: false });
  await rig.actions.restore(rig.made[1]);
  expect(rig.asked[1]).toEqual(['restore', 'k', 'b', { discard: false, notebook: false }]);
  rig.kernel.head = 'b';
  expect(rig.actions.canUndo('k')).toBe(true);
  await rig.actions.undo('k');
  expect(rig.asked[2]).toEqual(['restore', 'k', 'u', { discard: false, notebook: false }]);
  rig.kernel.head = 'd';
  expect(rig.actions.canUndo('k')).toBe(false);
});

test('cells that were undone are marked until they run again; with the notebook brought back nothing is', async () => {
  const rig = new Rig();
  const [kept, undone, never] = [new CodeCell(1, 'x = 1'), new CodeCell(2, 'x = 2'), new CodeCell(null, 'y')];
  rig.cells = [kept, undone, never, {}];
  const marked = () => [kept, undone, never].map(cell => cell.node.dataset.torporUndone);
  yes({ notebook: false });
  await rig.actions.restore(rig.made[1]);
  expect(marked()).toEqual([undefined, 'undone 12:03', undefined]);
  expect([...undone.classes]).toEqual(['jp-mod-torporUndone']);
  mockScheduled(null, { cell: undone });
  expect([marked()[1], undone.classes.size]).toEqual([undefined, 0]);
  yes({ notebook: false });
  await rig.actions.restore(rig.made[1]);
  yes({ notebook: true });
  await rig.actions.restore(rig.made[1]);
  expect(marked()).toEqual([undefined, undefined, undefined]);
});

test('cells of another branch with the same number are not mistaken for those of this one', async () => {
  const rig = new Rig();
  rig.made.splice(0, 4, checkpoint('a', null, { created_ns: 1 }));
  rig.kernel.head = 'a';
  const [one, two] = [new CodeCell(2, 'one'), new CodeCell(2, 'two')];
  rig.cells = [one, two];
  const marked = () => rig.cells.map(cell => cell.node.dataset.torporUndone !== undefined);
  const back = async (id: string, kept?: any) => {
    yes({ notebook: false });
    const going = rig.actions.restore(rig.made.find(made => made.id === id)!);
    rig.made.push(...(kept ? [kept] : []));
    await going;
    rig.kernel.head = id;
  };
  mockRan(null, { cell: one, notebook: 'k' });
  await back('a', checkpoint('with one', 'a', { created_ns: 2, execution_count: 2 }));
  expect(marked()).toEqual([true, true]); // of the second it is not known when it ran
  mockScheduled(null, { cell: two });
  mockRan(null, { cell: two, notebook: 'k' });
  expect(marked()).toEqual([true, false]);
  await back('with one', checkpoint('with two', 'a', { created_ns: 3, execution_count: 2 }));
  expect(marked()).toEqual([false, true]);
  await back('with two');
  expect(marked()).toEqual([true, false]);
  await back('a');
  expect(marked()).toEqual([true, true]);
});

test('a notebook that cannot be saved does not go back with its kernel', async () => {
  const rig = new Rig();
  rig.context = { model: { dirty: true }, save: async () => Promise.reject(Error('read-only')) };
  yes({ notebook: true });
  await rig.actions.restore(rig.made[1]);
  expect(rig.asked.map(one => one[0])).toEqual(['diff']);
});

test('a kernel that cannot be saved may go back all the same, but not one that is busy with something else', async () => {
  for (const [kind, ways] of [['Refused', 1], ['CheckpointFailed', 1], ['Unsuitable', 0]] as const) {
    const rig = new Rig();
    rig.refusal = new Refusal(409, 'no', '', [], kind);
    yes({ notebook: false });
    await rig.actions.restore(rig.made[1]);
    expect(mockFollowed.pop()!.ways).toHaveLength(ways);
    yes({ notebook: false });
    await rig.actions.restore(rig.made[1], true);
    expect(mockDialogs.pop()!.buttons).toEqual(['cancel', 'warn']);
    expect(mockFollowed.pop()!.ways).toHaveLength(0);
  }
});

test('a kernel that was gone is given to the notebook again', async () => {
  const rig = new Rig();
  rig.kernel = undefined;
  yes({ notebook: false });
  await rig.actions.restore(rig.made[1]);
  expect([rig.adopted, mockDialogs[0].body.loss.gone]).toEqual([['k'], true]);
});

test('a fork of now is saved first, and its notebook is opened', async () => {
  const rig = new Rig();
  await rig.actions.forkNow('k');
  expect([rig.asked, rig.opened]).toEqual([[['save', 'k'], ['fork', 'k', 'd']], ['b.ipynb']]);
  rig.refusal = new Refusal(409, 'no');
  await rig.actions.forkNow('k');
  expect(rig.opened).toHaveLength(1);
});

test('a checkpoint is carried in a file, and the notebook of one that comes is opened', async () => {
  const rig = new Rig();
  await rig.actions.export(rig.made[0]);
  expect(mockFollowed[0].message).toContain('work-kernel1.torpor');
  mockAnswers.push({ button: { accept: true }, value: 'a.torpor' }, { button: { accept: true }, value: '' });
  await rig.actions.import();
  await rig.actions.import('b.torpor');
  expect(mockAsked.map(({ text }) => text)).toEqual([undefined, 'b.torpor']);
  expect([rig.asked, rig.opened]).toEqual([[['export', 'a'], ['import', 'a.torpor']], ['work.ipynb']]);
});

test('a checkpoint is compared with the one that it came from, the earlier one first', async () => {
  const rig = new Rig();
  for (const [at, sides] of [[2, ['b', 'c']], [0, ['a', 'b']], [3, ['a', 'side']]] as const) {
    yes();
    await rig.actions.compare(rig.made[at]);
    const { earlier, later } = mockDialogs.pop()!.body.props;
    expect([earlier, later]).toEqual(sides);
  }
});

test('several are deleted at once, but not what is pinned or where the kernel is', async () => {
  const rig = new Rig();
  rig.made[1].pinned = true;
  expect(rig.actions.deletable('k').map(one => one.id)).toEqual(['a', 'side']);
  yes(['a', 'side'] as any);
  await rig.actions.removeSeveral('k');
  expect(mockDialogs[0].body.checkpoints.map((one: any) => one.id)).toEqual(['a', 'side']);
  expect([rig.asked, mockFollowed[0].message]).toEqual([[['remove', 'a'], ['remove', 'side']], '2: 10 B']);
  no();
  await rig.actions.removeSeveral('k');
  expect(rig.asked).toHaveLength(2);
});

test('a name and a note are changed only when they were given', async () => {
  const rig = new Rig();
  mockAnswers.push({ button: { accept: true }, value: 'mine' }, { button: { accept: true }, value: ' a note ' });
  await rig.actions.rename(rig.made[0]);
  await rig.actions.writeNote(rig.made[0]);
  await rig.actions.pin(rig.made[0]);
  no();
  await rig.actions.rename(rig.made[0]);
  no();
  await rig.actions.remove(rig.made[0]);
  expect(rig.asked).toEqual([
    ['change', 'a', { name: 'mine' }],
    ['change', 'a', { note: 'a note' }],
    ['change', 'a', { pinned: true }]
  ]);
});
