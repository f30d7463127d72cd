import { URLExt } from '@jupyterlab/coreutils';
import { ServerConnection } from '@jupyterlab/services';

/** The operation in progress on a kernel. Bytes, 0 while unknown. */
export interface IOperation {
  doing: 'saving' | 'parking' | 'waking' | 'restoring' | 'forking';
  done: number;
  total: number;
}

/** Why the server refused a request: the JSON of its answer. */
export interface IRefusal {
  message?: string;
  reason?: string;
  advice?: string;
  details?: string[];
  causes?: ICause[];
  kind?: string;
}

/** What prevents something, and what to do about it. */
export interface ICause {
  why: string;
  advice: string;
}

/** A kernel of the server. Times are nanoseconds since the epoch. */
export interface IKernel {
  id: string;
  name: string;
  state: 'living' | 'parked';
  snapshot: string | null;
  parked_ns: number | null;
  head: string | null;
  execution_state: string;
  execution_count: number;
  suitable: boolean;
  /** Bytes that its processes have. */
  memory: number;
  /** Why it could not be saved when that was tried last. */
  unsaved: (IRefusal & { at_ns: number }) | null;
  /** What becomes of it when the server stops, as far as that is known. */
  at_stop: 'parked' | 'living' | 'ended';
  sessions: { id: string; path: string | null; type: string }[];
  operation: IOperation | null;
}

/** The rules for automatic checkpoints. 0: never, all. */
export interface IRules {
  /** Minutes. */
  checkpoint_every: number;
  /** Seconds. */
  checkpoint_after: number;
  keep_last: number;
}

/** The store, and the server's rules. */
export interface IStore extends IRules {
  path: string;
  /** Bytes. */
  used: number;
  /** 0: no limit. */
  quota: number;
}

/** A kernel that went back to a checkpoint. */
export interface IRestored extends IKernel {
  /** The checkpoint of the state before, if that was saved. */
  undo: string | null;
  /** The file that keeps the notebook as it was before, if that checkpoint does not. */
  notebook_kept?: string | null;
  /** Why the notebook could not be brought back with its kernel. */
  notebook_failed?: string;
}

/** A second kernel that continues from a checkpoint of the first, with its own notebook. */
export interface IFork {
  kernel: IKernel;
  path: string | null;
  session: string | null;
}

/** A variable, described for the user. */
export interface IVariable {
  name: string;
  type: string;
  summary: string;
  /** Of one that has changed. */
  before?: string;
}

/** How a checkpoint ("here") differs from an earlier one ("there"). Memory is in bytes. */
export interface IDiff {
  memory: { shared: number; only_here: number; only_there: number };
  variables: { added: IVariable[]; removed: IVariable[]; changed: IVariable[] } | null;
  /** Why `variables` is null. */
  why: string | null;
}

/** A checkpoint of a kernel. Sizes are bytes. */
export interface ICheckpoint {
  id: string;
  kernel_id: string;
  name: string;
  note: string;
  pinned: boolean;
  automatic: boolean;
  /** Why the server made it; empty if the user asked for it or has named it. */
  reason: '' | 'parked' | 'rule' | 'stopping' | 'preempted' | 'idle' | 'memory' | 'going-back';
  /** With reason "going-back": the checkpoint that the kernel went back to. */
  about: string | null;
  parent: string | null;
  path: string | null;
  cell: string;
  execution_count: number;
  created_ns: number;
  host: string;
  size: number;
  written: number;
  damage: string;
  has_notebook: boolean;
}

/** A cell that a page has sent which has gone, and all that the kernel said of it. */
export interface ISaid {
  /** The header of the request. */
  request: { msg_id?: unknown };
  /** Its id in the notebook. */
  cell: string;
  code: string;
  messages: { header: { session?: string }; parent_header: object; channel: string }[];
}

/** The server refused a request. */
export class Refusal extends Error {
  constructor(
    readonly status: number,
    readonly reason: string,
    /** What to do next. */
    readonly advice = '',
    /** One line for each object that prevents it. */
    readonly details: readonly string[] = [],
    /** Torpor's name of the error; empty when something else answered. */
    readonly kind = '',
    /** The same as `details` for people who do not know processes and descriptors. */
    readonly causes: readonly ICause[] = []
  ) {
    super(reason);
  }

  /** A Refusal from the JSON of an answer. */
  static of(status: number, told: IRefusal, otherwise = ''): Refusal {
    const reason = told.reason || told.message || otherwise;
    return new Refusal(status, reason, told.advice, told.details, told.kind, told.causes);
  }

  /** The first reason. */
  get why(): string {
    return this.causes[0]?.why ?? this.details[0] ?? this.reason;
  }
}

/** Torpor's REST API. Its promises are rejected with a Refusal, or because the server cannot be reached. */
export class TorporAPI {
  constructor(private readonly settings: ServerConnection.ISettings) {}

  kernels(): Promise<IKernel[]> {
    return this.request('GET', 'kernels');
  }

  store(): Promise<IStore> {
    return this.request('GET', 'store');
  }

  checkpoints(kernel: string): Promise<ICheckpoint[]> {
    return this.request('GET', `kernels/${kernel}/checkpoints`);
  }

  allCheckpoints(): Promise<ICheckpoint[]> {
    return this.request('GET', 'checkpoints');
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

  /** Take over the cells whose page has gone, for the page that has this session. */
  takeCells(kernel: string, session: string): Promise<ISaid[]> {
    return this.request('POST', `kernels/${kernel}/cells`, { session });
  }

  cancel(kernel: string): Promise<unknown> {
    return this.request('POST', `kernels/${kernel}/cancel`, {});
  }

  restore(kernel: string, checkpoint: string, how: { discard: boolean; notebook: boolean }): Promise<IRestored> {
    return this.request('POST', `kernels/${kernel}/checkpoints/${checkpoint}/restore`, how);
  }

  fork(kernel: string, checkpoint: string): Promise<IFork> {
    return this.request('POST', `kernels/${kernel}/checkpoints/${checkpoint}/fork`, {});
  }

  /** How a checkpoint differs from an earlier one. */
  diff(kernel: string, earlier: string, later: string): Promise<IDiff> {
    return this.request('GET', `kernels/${kernel}/checkpoints/${later}/diff?with=${earlier}`);
  }

  /** The variables that a kernel had at a checkpoint, or why they are not known. */
  variables(kernel: string, checkpoint: string): Promise<{ variables: IVariable[] | null; why: string | null }> {
    return this.request('GET', `kernels/${kernel}/checkpoints/${checkpoint}/variables`);
  }

  /** Write a checkpoint to a file beside its notebook. */
  export(kernel: string, checkpoint: string): Promise<{ path: string }> {
    return this.request('POST', `kernels/${kernel}/checkpoints/${checkpoint}/export`, {});
  }

  /** Take a file of `export` into the store; gives the notebook that is written beside it. */
  import(path: string): Promise<{ path: string }> {
    return this.request('POST', 'import', { path });
  }

  change(kernel: string, checkpoint: string, changes: { name?: string; note?: string; pinned?: boolean }): Promise<ICheckpoint> {
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
      let told: IRefusal = {};
      try {
        told = JSON.parse(text);
      } catch {
        // A proxy answered: its status is all that is known.
      }
      throw Refusal.of(response.status, told, `${response.status} ${response.statusText}`);
    }
    return JSON.parse(text || 'null') as T;
  }
}
