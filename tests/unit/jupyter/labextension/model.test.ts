import { Signal } from '@lumino/signaling';
import { Refusal } from '../src/api';
import { TorporModel } from '../src/model';

jest.mock('@jupyterlab/services', () => ({}));
(global as any).window = global;

const checkpoint = (id: string, kernel_id: string, path = 'a.ipynb'): any => ({ id, kernel_id, path });

class Server {
  kernels: any[] = [];
  own: any[] = [];
  all: any[] = [];
  asked: string[] = [];
  error: unknown;
  /** Answers to wait for, by those who asked. */
  held: (() => void)[] = [];
  hold = false;

  readonly api: any = {
    kernels: () => this.answer('kernels', this.kernels),
    checkpoints: (kernel: string) => this.answer(kernel, this.own),
    allCheckpoints: () => this.answer('all', this.all),
    store: async () => ({ used: 5, checkpoint_every: 3, keep_last: 30 }),
    cancel: () => this.answer('cancel', null)
  };

  private async answer(what: string, found: unknown): Promise<any> {
    this.asked.push(what);
    if (this.hold) {
      await new Promise<void>(go => this.held.push(go));
    }
    if (this.error) {
      throw this.error;
    }
    return found;
  }
}

const words: any = { title: (one: any) => one.id };

function made(server: Server) {
  const stream = new Signal<object, any>({});
  const runningChanged = new Signal<object, any>({});
  const model = new TorporModel(server.api, { events: { stream }, sessions: { runningChanged } } as any, words);
  return { model, stream, runningChanged };
}

beforeEach(() => {
  jest.spyOn(console, 'warn').mockImplementation();
  jest.spyOn(console, 'info').mockImplementation();
});

test('it asks for the kernels, and of the watched one for its checkpoints and those of its notebook', async () => {
  const server = new Server();
  const { model } = made(server);
  await model.refresh();
  expect([server.asked, model.checkpoints]).toEqual([['kernels', 'kernels'], []]);
  server.kernels = [{ id: 'k', state: 'parked' }, { id: 'l', state: 'living' }];
  server.own = [checkpoint('1', 'k')];
  server.all = [checkpoint('0', 'old'), checkpoint('1', 'k'), checkpoint('2', 'other', 'b.ipynb')];
  model.watch('a.ipynb', 'k');
  await model.refresh();
  expect(model.checkpoints.map(one => one.id)).toEqual(['1']);
  expect(model.earlier.map(one => one.id)).toEqual(['0']);
  expect(model.parked.map(one => one.id)).toEqual(['k']);
  expect(model.checkpoint('0')?.kernel_id).toBe('old');
  expect(model.beside(server.own[0]).map(one => one.id)).toEqual(['1']);
  model.dispose();
});

test('who asks while it is asked gets one more answer, not one for each', async () => {
  const server = new Server();
  server.hold = true;
  const { model } = made(server);
  await Promise.resolve();
  const asked = [model.refresh(), model.refresh(), model.refresh()];
  server.hold = false;
  server.held.forEach(go => go());
  await Promise.all(asked);
  expect(server.asked).toEqual(['kernels', 'kernels']);
  model.dispose();
});

test('what was asked for another notebook is not shown for this one', async () => {
  const server = new Server();
  const { model } = made(server);
  await model.refresh();
  server.own = [checkpoint('1', 'k')];
  server.hold = true;
  model.watch('a.ipynb', 'k');
  while (server.held.length < 1) await Promise.resolve();
  model.watch('b.ipynb', 'l');
  server.own = [checkpoint('2', 'l', 'b.ipynb')];
  server.hold = false;
  server.held.splice(0).forEach(go => go());
  await model.refresh();
  expect(model.checkpoints.map(one => one.id)).toEqual(['2']);
  expect(server.asked.includes('l')).toBe(true);
  model.dispose();
});

test('only events of Torpor make it look for checkpoints of the notebook again', async () => {
  const server = new Server();
  const { model, stream, runningChanged } = made(server);
  model.watch('a.ipynb', 'k');
  await model.refresh();
  server.asked = [];
  stream.emit({ schema_id: 'https://another' });
  expect(server.asked).toEqual([]);
  runningChanged.emit(undefined);
  await model.refresh();
  expect(server.asked).not.toContain('all');
  stream.emit({ schema_id: 'https://events.torpor.invalid/kernel/v1' });
  await model.refresh();
  expect(server.asked).toContain('all');
  model.dispose();
});

test('a refusal is told, a server that is away is not; what was known stays', async () => {
  const server = new Server();
  server.kernels = [{ id: 'k' }];
  const { model } = made(server);
  await model.refresh();
  server.error = new Refusal(500, 'the store is full');
  await model.refresh();
  expect([model.trouble, model.kernels.length]).toEqual(['the store is full', 1]);
  server.error = new TypeError('network');
  await model.refresh();
  expect(model.trouble).toBe('');
  await model.cancel('k'); // it had ended already: nothing is thrown
  server.error = undefined;
  model.dispose();
});

test('while something is done to a kernel its progress is asked for, and not for ever', async () => {
  jest.useFakeTimers();
  const server = new Server();
  server.kernels = [{ id: 'k', operation: { doing: 'saving', done: 0, total: 0 } }];
  const { model } = made(server);
  await model.refresh();
  server.asked = [];
  await jest.advanceTimersByTimeAsync(500);
  expect(server.asked).toEqual(['kernels']);
  server.kernels = [{ id: 'k', operation: null }];
  await jest.advanceTimersByTimeAsync(5000);
  expect(server.asked).toEqual(['kernels', 'kernels']);
  model.dispose();
  jest.useRealTimers();
});

test('a notebook has its own rules, of which what is no rule counts for nothing', async () => {
  const { model } = made(new Server());
  expect(model.rules).toBe(undefined);
  await model.refresh();
  expect(model.rules).toMatchObject({ checkpoint_every: 3, keep_last: 30 });
  model.watch('a.ipynb', undefined, () => ({ keep_last: 2, checkpoint_every: 'often', checkpoint_after: -1, used: 7 }));
  expect(model.rules).toEqual({ used: 5, checkpoint_every: 3, keep_last: 2 });
  model.watch('b.ipynb', undefined);
  expect(model.rules).toMatchObject({ keep_last: 30 });
});
