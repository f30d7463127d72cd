import { Refusal } from '../src/api';
import { Notices } from '../src/notices';

interface IShown {
  message: string;
  type: string;
  actions: any[];
  autoClose: number | false;
}
const mockShown = new Map<string, IShown>();
const mockSeen: string[] = [];
let mockNext = 0;
jest.mock('@jupyterlab/apputils', () => ({
  Dialog: { okButton: () => ({}) },
  showDialog: jest.fn(),
  Notification: {
    emit: (message: string, type: string, options: any) => {
      mockShown.set(`${(mockNext += 1)}`, { message, type, ...options });
      mockSeen.push(`${type}: ${message}`);
      return `${mockNext}`;
    },
    update: ({ id, ...changes }: any) => Object.assign(mockShown.get(id)!, changes),
    dismiss: (id: string) => mockShown.delete(id)
  }
}));
jest.mock('../src/dialogs', () => ({ Why: class { constructor(readonly refusal: unknown) {} } }));
(global as any).window = global;

const words: any = {
  trans: { __: (text: string) => text },
  doing: ({ doing }: any) => `${doing}…`
};

class Model {
  operation: any = null;
  cancelled: string[] = [];
  followers: [() => void, unknown][] = [];
  changed = {
    connect: (call: () => void, self: unknown) => this.followers.push([call, self]),
    disconnect: () => void this.followers.splice(0)
  };
  kernel = () => ({ operation: this.operation });
  refresh = async () => this.followers.forEach(([call, self]) => call.call(self));
  cancel = async (kernel: string) => void this.cancelled.push(kernel);
}

const made = () => {
  const model = new Model();
  return { model, notices: new Notices(model as any, words) };
};

beforeEach(() => {
  mockShown.clear();
  mockSeen.splice(0);
});

test('success is told with what can be done next, and only the last one of a kernel stays', async () => {
  const { notices } = made();
  const news = (message: string) => ({ message, actions: [{ label: 'Name it…', callback: () => undefined }] });
  expect(await notices.follow('k', Promise.resolve(7), 'failed', value => news(`saved ${value}`))).toBe(7);
  await notices.follow('l', Promise.resolve(), 'failed', () => news('another kernel'));
  await notices.follow('k', Promise.resolve(8), 'failed', value => news(`saved ${value}`));
  expect([...mockShown.values()].map(one => [one.message, one.type])).toEqual([
    ['another kernel', 'success'],
    ['saved 8', 'success']
  ]);
});

test('a failure stays, says the first reason, and has a way on only if the server itself refused', async () => {
  const { notices } = made();
  const wayOn = () => [{ label: 'Go back anyway…', callback: () => undefined }];
  const refused = new Refusal(409, 'it cannot be saved', 'close it', ['fd 3: no', 'fd 4: no'], 'Refused');
  expect(await notices.follow('k', Promise.reject(refused), 'Could not save', undefined, wayOn)).toBeUndefined();
  await notices.follow('k', Promise.reject(new Refusal(502, '502 Bad Gateway')), 'Could not save', undefined, wayOn);
  await notices.follow('k', Promise.reject(new TypeError('network')), 'Could not save');
  expect([...mockShown.values()].map(one => [one.message, one.type, one.autoClose, one.actions.map(a => a.label)])).toEqual([
    ['Could not save: fd 3: no', 'error', false, ['Go back anyway…', 'Details…']],
    ['Could not save: 502 Bad Gateway', 'error', false, ['Details…']],
    ['Could not save: network', 'error', false, ['Details…']]
  ]);
});

test('what people understand is said first, and processes and descriptors are details', async () => {
  const { notices } = made();
  const causes = [{ why: 'a socket cannot be kept (variable link)', advice: 'close it' }];
  const refused = new Refusal(409, 'no', '', ['process 1, fd 3: a socket cannot be kept'], 'Refused', causes);
  await notices.follow('k', Promise.reject(refused), 'Kernel not saved');
  const [shown] = [...mockShown.values()];
  expect(shown.message).toBe('Kernel not saved: a socket cannot be kept (variable link)');
  shown.actions[0].callback();
  const { showDialog } = jest.requireMock('@jupyterlab/apputils');
  expect(showDialog.mock.calls.pop()[0].body.refusal).toBe(refused);
});

test('what was cancelled is no failure', async () => {
  const { notices } = made();
  await notices.follow('k', Promise.reject(new Refusal(409, 'cancelled', '', [], 'Cancelled')), 'Could not save');
  expect(mockSeen).toEqual(['info: Cancelled. The kernel is as it was.']);
});

test('what takes longer than a second shows its progress, with a way to cancel, until it is over', async () => {
  jest.useFakeTimers();
  const { model, notices } = made();
  let done!: () => void;
  const over = notices.follow('k', new Promise<void>(resolve => (done = resolve)), 'failed', () => ({ message: 'saved' }));
  await jest.advanceTimersByTimeAsync(900);
  expect(mockSeen).toEqual([]);
  model.operation = { doing: 'saving', done: 1, total: 4 };
  await jest.advanceTimersByTimeAsync(200);
  const [[id, progress]] = [...mockShown];
  expect([progress.message, progress.type, (progress as any).progress]).toEqual(['saving…', 'in-progress', 0.25]);
  model.operation = { doing: 'saving', done: 2, total: 4 };
  await model.refresh();
  expect([mockShown.size, (mockShown.get(id) as any).progress]).toEqual([1, 0.5]);
  progress.actions[0].callback({ preventDefault: () => undefined });
  expect(model.cancelled).toEqual(['k']);
  done();
  await over;
  expect([...mockShown.values()].map(one => one.message)).toEqual(['saved']);
  expect(model.followers).toEqual([]);
  jest.useRealTimers();
});
