import { URLExt } from '@jupyterlab/coreutils';
import { ServerConnection } from '@jupyterlab/services';

/** What is being done to a kernel; bytes, 0 while unknown. */
export interface IOperation {
  doing: 'saving' | 'parking' | 'waking' | 'restoring';
  done: number;
  total: number;
}

/** A kernel of the server. Times are nanoseconds since the epoch. */
export interface IKernel {
  id: string;
  name: string;
  state: 'living' | 'parked';
  snapshot: string | null;
  parked_ns: number | null;
  head: string | null;
  execution_count: number;
  suitable: boolean;
  sessions: { id: string; path: string | null; type: string }[];
  operation: IOperation | null;
}

/** A kernel that was taken back: with the checkpoint of what it was before, if that was kept. */
export interface IRestored extends IKernel {
  undo: string | null;
}

/** A checkpoint of a kernel. Sizes are bytes. */
export interface ICheckpoint {
  id: string;
  kernel_id: string;
  name: string;
  note: string;
  pinned: boolean;
  automatic: boolean;
  parent: string | null;
  path: string | null;
  cell: string;
  execution_count: number;
  created_ns: number;
  host: string;
  size: number;
  written: number;
  damage: string;
}

/** Torpor's REST API. A promise that fails has the server's reason, and what to do next, as its message. */
export class TorporAPI {
  constructor(private readonly settings: ServerConnection.ISettings) {}

  kernels(): Promise<IKernel[]> {
    return this.request('GET', 'kernels');
  }

  checkpoints(kernel: string): Promise<ICheckpoint[]> {
    return this.request('GET', `kernels/${kernel}/checkpoints`);
  }

  save(kernel: string): Promise<ICheckpoint> {
    return this.request('POST', `kernels/${kernel}/checkpoints`, {});
  }

  park(kernel: string): Promise<IKernel> {
    return this.request('POST', `kernels/${kernel}/park`, {});
  }

  resume(kernel: string): Promise<IKernel> {
    return this.request('POST', `kernels/${kernel}/resume`, {});
  }

  restore(kernel: string, checkpoint: string): Promise<IRestored> {
    return this.request('POST', `kernels/${kernel}/checkpoints/${checkpoint}/restore`, {});
  }

  change(kernel: string, checkpoint: string, changes: { name?: string; pinned?: boolean }): Promise<ICheckpoint> {
    return this.request('PATCH', `kernels/${kernel}/checkpoints/${checkpoint}`, changes);
  }

  remove(kernel: string, checkpoint: string): Promise<{ freed: number }> {
    return this.request('DELETE', `kernels/${kernel}/checkpoints/${checkpoint}`);
  }

  private async request<T>(method: string, path: string, body?: object): Promise<T> {
    const url = URLExt.join(this.settings.baseUrl, 'api/torpor', path);
    const init: RequestInit = { method };
    if (body) {
      init.body = JSON.stringify(body);
    }
    const response = await ServerConnection.makeRequest(url, init, this.settings);
    const text = await response.text();
    if (!response.ok) {
      let reason = `${response.status} ${response.statusText}`;
      try {
        reason = JSON.parse(text).message || reason;
      } catch {
        // An answer of a proxy: its status is all that is known.
      }
      throw new Error(reason);
    }
    return JSON.parse(text) as T;
  }
}
