import { Event, ServerConnection } from '@jupyterlab/services';
import { UUID } from '@lumino/coreutils';
import { IDisposable } from '@lumino/disposable';
import { ISignal, Signal } from '@lumino/signaling';

import { Api, ProblemError } from './api';
import {
  awaitsDecision,
  IDecision,
  IMigrationView,
  IProblem,
  IRunView
} from './types';

const CHANGED_SCHEMA = 'https://cloudshift-lab.dev/events/changed/v1';
const MIN_GAP_MS = 700;

export interface IState {
  /** null until the first answer. */
  online: boolean | null;
  /** Why it is not online, and since when (seconds). */
  problem: IProblem | null;
  offlineSince: number | null;
  runs: IRunView[];
  migrations: IMigrationView[];
  /** When `runs` and `migrations` were fetched, seconds; 0 if never. */
  fetchedAt: number;
}

/**
 * What the page knows of the conductor. Events only say "something changed"; the truth is fetched.
 */
export class CloudshiftModel implements IDisposable {
  constructor(
    readonly api: Api,
    events: Event.IManager
  ) {
    this._events = events;
    events.stream.connect(this._onEvent, this);
    this._schedule(0);
  }

  get state(): IState {
    return this._state;
  }

  get changed(): ISignal<this, IState> {
    return this._changed;
  }

  /** Moves that wait for a person. */
  get pending(): IMigrationView[] {
    return this._state.migrations.filter(awaitsDecision);
  }

  set pollSeconds(value: number) {
    this._pollMs = value * 1000;
    this._schedule(this._pollMs);
  }

  get isDisposed(): boolean {
    return this._disposed;
  }

  dispose(): void {
    if (this._disposed) {
      return;
    }
    this._disposed = true;
    window.clearTimeout(this._timer);
    this._events.stream.disconnect(this._onEvent, this);
    Signal.clearData(this);
  }

  /** Send a decision bound to the plan that was shown; the same click twice is one decision. */
  async decide(
    view: IMigrationView,
    verdict: 'approve' | 'reject',
    by: string
  ): Promise<void> {
    const key = `${view.plan.digest}:${verdict}`;
    const decision: IDecision = this._decisions.get(key) ?? {
      decision_id: `decision-${UUID.uuid4()}`,
      plan_digest: view.plan.digest,
      verdict,
      by,
      at: Date.now() / 1000
    };
    this._decisions.set(key, decision);
    try {
      await this.api.decide(view.migration_id, decision);
    } finally {
      await this.refresh();
    }
  }

  async startConductor(): Promise<void> {
    await this.api.startConductor();
    await this.refresh();
  }

  async refresh(): Promise<void> {
    window.clearTimeout(this._timer);
    this._lastFetch = Date.now();
    this._eventDuringFetch = false;
    const fetch = ++this._fetch;
    try {
      const [runs, migrations] = await Promise.all([
        this.api.runs(),
        this.api.migrations()
      ]);
      if (fetch !== this._fetch) {
        return; // a younger request will tell
      }
      this._publish({
        online: true,
        problem: null,
        offlineSince: null,
        runs,
        migrations,
        fetchedAt: Date.now() / 1000
      });
    } catch (error) {
      if (fetch !== this._fetch) {
        return;
      }
      this._goOffline(error);
    }
    this._fetchDone = fetch;
    this._schedule(this._eventDuringFetch ? MIN_GAP_MS : this._pollMs);
  }

  private _goOffline(error: unknown): void {
    const problem = asProblem(error);
    const since =
      problem.since ?? this._state.offlineSince ?? Date.now() / 1000;
    this._publish({
      ...this._state,
      online: false,
      problem,
      offlineSince: since
    });
  }

  private _onEvent(_: Event.IManager, emission: Event.Emission): void {
    if (emission.schema_id !== CHANGED_SCHEMA) {
      return;
    }
    if (this._fetch !== this._fetchDone) {
      this._eventDuringFetch = true; // the answer under way may be older than the event
    } else {
      this._schedule(Math.max(0, this._lastFetch + MIN_GAP_MS - Date.now()));
    }
  }

  private _schedule(delayMs: number): void {
    if (this._disposed) {
      return;
    }
    window.clearTimeout(this._timer);
    this._timer = window.setTimeout(() => void this.refresh(), delayMs);
  }

  private _publish(state: IState): void {
    if (!this._disposed) {
      this._state = state;
      this._changed.emit(state);
    }
  }

  private _events: Event.IManager;
  private _changed = new Signal<this, IState>(this);
  private _decisions = new Map<string, IDecision>();
  private _disposed = false;
  private _timer = 0;
  private _lastFetch = 0;
  private _fetch = 0;
  private _fetchDone = 0;
  private _eventDuringFetch = false;
  private _pollMs = 10_000;
  private _state: IState = {
    online: null,
    problem: null,
    offlineSince: null,
    runs: [],
    migrations: [],
    fetchedAt: 0
  };
}

function asProblem(error: unknown): IProblem {
  if (error instanceof ProblemError) {
    return error.problem;
  }
  const message =
    error instanceof ServerConnection.NetworkError
      ? 'the Jupyter server does not answer; is it still running?'
      : String(error);
  return { kind: 'Unavailable', message, action: 'retry' };
}
