import { Signal } from '@lumino/signaling';
import { Adopter } from '../src/adopt';

jest.mock('@jupyterlab/cells', () => ({
  CodeCell: class {
    prompts: string[] = [];
    outputArea: any = {};
    model: any;
    constructor(id: string) {
      this.model = { sharedModel: { getId: () => id } };
    }
    setPrompt = (prompt: string) => this.prompts.push(prompt);
  }
}));
jest.mock('@jupyterlab/services/lib/kernel/future', () => ({
  KernelShellFutureHandler: class {
    seen: string[] = [];
    isDisposed = false;
    done: Promise<any>;
    private answer!: (reply: any) => void;
    constructor(private readonly gone: () => void) {
      this.done = new Promise(resolve => (this.answer = resolve));
    }
    async handleMsg(msg: any) {
      this.seen.push(`${msg.channel} ${msg.header.msg_type}`);
      if (msg.channel === 'shell') {
        this.answer(msg);
      } else if (msg.content.execution_state === 'idle') {
        this.isDisposed = true;
        this.gone();
      }
    }
  }
}));

const { CodeCell } = jest.requireMock('@jupyterlab/cells');
let next = 0;
const message = (msg_type: string, content: object = {}, parent = 'one', channel = 'iopub'): any => ({
  header: { msg_id: `${(next += 1)}`, msg_type }, parent_header: { msg_id: parent }, channel, content
});

function made(said: any[]) {
  const anyMessage = new Signal<object, any>({});
  const kernel: any = { id: 'k', clientId: 'page', connectionStatus: 'connected', anyMessage };
  const asks = new Signal<object, void>({});
  const cell = new CodeCell('cell-1');
  const asked: string[][] = [];
  const panel: any = {
    sessionContext: {
      session: { kernel },
      kernelChanged: new Signal<object, any>({}),
      connectionStatusChanged: new Signal<object, any>({})
    },
    disposed: new Signal<object, any>({}),
    context: { ready: Promise.resolve() },
    content: { widgets: [{ model: { sharedModel: { getId: () => 'text' } } }, cell] }
  };
  const takeCells = async (...what: string[]) => (asked.push(what), said);
  new Adopter(panel, { asks, api: { takeCells } } as any);
  const hear = (msg: any) => anyMessage.emit({ msg, direction: 'recv' });
  return { cell, asked, asks, hear, settled: () => new Promise(resolve => setTimeout(resolve, 0)) };
}

test('a cell of a page that has gone shows what was said, goes on, and is done', async () => {
  const before = [message('execute_input', { execution_count: 7 }), message('stream')];
  const { cell, asked, asks, hear, settled } = made([{ request: { msg_id: 'one' }, cell: 'cell-1', code: '', messages: before }]);
  hear(before[1]); // it came by the websocket, too
  const early = message('stream');
  hear(early);
  await settled();
  expect([asked, cell.prompts]).toEqual([[['k', 'page']], ['*']]);
  asks.emit();
  await settled();
  hear(message('stream', {}, 'another'));
  hear(message('status', { execution_state: 'idle' }));
  await settled();
  expect(cell.outputArea.future.seen).toEqual([
    'iopub execute_input', 'iopub stream', 'iopub stream', 'shell execute_reply', 'iopub status'
  ]);
  expect([cell.model.executionCount, cell.prompts]).toEqual([7, ['*', '7']]);
});

test('cells that are not in the notebook, or none, are nothing to it', async () => {
  const { cell, settled } = made([{ request: { msg_id: 'one' }, cell: 'gone', code: '', messages: [message('stream')] }]);
  await settled();
  expect(cell.prompts).toEqual([]);
});

test('an end that Torpor tells comes after what the page has heard by itself', async () => {
  const own = (kind: string, content: object = {}) => {
    const told = message(kind, content);
    return { ...told, header: { ...told.header, session: 'torpor' } };
  };
  const messages = [message('execute_input', { execution_count: 7 }), own('stream'), own('status', { execution_state: 'idle' })];
  const { cell, hear, settled } = made([{ request: { msg_id: 'one' }, cell: 'cell-1', code: '', messages }]);
  hear(message('display_data'));
  await settled();
  expect(cell.outputArea.future.seen).toEqual([
    'iopub execute_input', 'iopub display_data', 'iopub stream', 'shell execute_reply', 'iopub status'
  ]);
});
