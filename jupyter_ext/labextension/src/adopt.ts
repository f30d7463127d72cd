import { CodeCell } from '@jupyterlab/cells';
import { NotebookPanel } from '@jupyterlab/notebook';
import { Kernel, KernelMessage } from '@jupyterlab/services';
import { KernelShellFutureHandler } from '@jupyterlab/services/lib/kernel/future';
import { ISaid } from './api';
import { TorporModel } from './model';

type Message = KernelMessage.IMessage;
type Future = KernelShellFutureHandler<KernelMessage.IExecuteRequestMsg, KernelMessage.IExecuteReplyMsg>;

/** How many messages of unknown requests are remembered until it is known whose they are. */
const RECENT = 1000;

/** The session of messages that Torpor adds to those of the kernel. */
const TORPOR = 'torpor';

/**
 * Gives a notebook what its kernel said and asked while no page was there: of cells that still run, or have run since,
 * and that another page, which has gone, had sent.
 */
export class Adopter {
  constructor(
    private readonly panel: NotebookPanel,
    private readonly model: TorporModel
  ) {
    const { sessionContext } = panel;
    sessionContext.kernelChanged.connect(this.follow, this);
    sessionContext.connectionStatusChanged.connect(this.follow, this);
    model.asks.connect(this.follow, this);
    panel.disposed.connect(() => {
      model.asks.disconnect(this.follow, this);
      this.kernel?.anyMessage.disconnect(this.overhear, this);
    });
    this.follow();
  }

  private follow(): void {
    const kernel = this.panel.sessionContext.session?.kernel ?? undefined;
    if (kernel !== this.kernel) {
      this.kernel?.anyMessage.disconnect(this.overhear, this);
      this.futures.clear();
      this.recent.splice(0);
      this.kernel = kernel;
      kernel?.anyMessage.connect(this.overhear, this);
    }
    if (kernel?.connectionStatus === 'connected') {
      void this.adopt(kernel);
    }
  }

  private async adopt(kernel: Kernel.IKernelConnection): Promise<void> {
    await this.panel.context.ready;
    let said: ISaid[] = [];
    try {
      said = await this.model.api.takeCells(kernel.id, kernel.clientId);
    } catch (error) {
      console.info('Torpor:', error); // the server has no Torpor, or is away
    }
    for (const one of said) {
      const cell = this.panel.content.widgets.find(({ model }) => model.sharedModel.getId() === one.cell);
      if (kernel !== this.kernel || !(cell instanceof CodeCell)) {
        continue;
      }
      const id = one.request.msg_id as string;
      const adopted = this.futures.get(id) ?? this.begin(kernel, cell, one);
      const recent = this.recent.filter(({ parent_header }) => parentOf(parent_header) === id);
      // The end of a cell that Torpor tells comes after all that this page has heard.
      const [told, last] = [false, true].map(own => one.messages.filter(({ header }) => (header.session === TORPOR) === own));
      for (const message of [...told, ...recent, ...last]) {
        await adopted.hear(message as Message);
      }
    }
  }

  private begin(kernel: Kernel.IKernelConnection, cell: CodeCell, said: ISaid): Adopted {
    const request = {
      header: said.request,
      parent_header: {},
      metadata: {},
      channel: 'shell',
      content: { code: said.code, allow_stdin: true }
    } as unknown as KernelMessage.IExecuteRequestMsg;
    const id = said.request.msg_id as string;
    const future: Future = new KernelShellFutureHandler(() => this.futures.delete(id), request, true, true, kernel);
    const adopted = new Adopted(future, cell);
    this.futures.set(id, adopted);
    return adopted;
  }

  private overhear(_: unknown, { msg, direction }: Kernel.IAnyMessageArgs): void {
    const id = parentOf(msg.parent_header);
    if (direction !== 'recv' || !id) {
      return;
    }
    const adopted = this.futures.get(id);
    if (adopted) {
      void adopted.hear(msg);
    } else if (this.recent.push(msg) > RECENT) {
      this.recent.shift();
    }
  }

  private kernel: Kernel.IKernelConnection | undefined;
  private readonly futures = new Map<string, Adopted>();
  private readonly recent: Message[] = [];
}

/** A cell that shows what the kernel says of a request that another page has sent. */
class Adopted {
  constructor(
    private readonly future: Future,
    cell: CodeCell
  ) {
    cell.outputArea.future = future;
    cell.setPrompt('*');
    future.done.then(
      reply => {
        cell.model.executionCount = (reply.content as KernelMessage.IExecuteReply).execution_count ?? null;
        cell.setPrompt(`${cell.model.executionCount ?? ''}`);
      },
      () => cell.setPrompt('')
    );
  }

  /** Handle a message, once. The reply goes to the page that has gone: it is made of what all hear. */
  async hear(message: Message): Promise<void> {
    const { msg_id, msg_type } = message.header;
    if (this.heard.has(msg_id) || this.future.isDisposed) {
      return;
    }
    this.heard.add(msg_id);
    const content = message.content as any;
    if (msg_type === 'execute_input') {
      this.count = content.execution_count;
    } else if (msg_type === 'error') {
      this.error = content;
    } else if (msg_type === 'status' && content.execution_state === 'idle') {
      await this.future.handleMsg({
        ...message,
        header: { ...message.header, msg_id: `${msg_id}-reply`, msg_type: 'execute_reply' },
        channel: 'shell',
        content: { status: this.error ? 'error' : 'ok', execution_count: this.count, ...this.error }
      } as any);
    }
    await this.future.handleMsg(message);
  }

  private count: number | null = null;
  private error: object | undefined;
  private readonly heard = new Set<string>();
}

function parentOf(header: object): string | undefined {
  return (header as { msg_id?: string } | null)?.msg_id;
}
