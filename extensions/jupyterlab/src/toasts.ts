import { Notification } from '@jupyterlab/apputils';
import { TranslationBundle } from '@jupyterlab/translation';
import { IDisposable } from '@lumino/disposable';
import { Signal } from '@lumino/signaling';

import { formatClock, formatDuration, formatUsd } from './format';
import { CloudshiftModel } from './model';
import { plannedPause } from './outlook';
import { IMigrationView, target } from './types';

/** What JupyterLab shows of a toast's words. */
const LONGEST_MESSAGE = 140;
const SHORTEST_NAME = 8;

/** A name's beginning and end: seeds and sizes stand there. */
function shortened(name: string, room: number): string {
  if (name.length <= room) {
    return name;
  }
  const tail = Math.floor((room - 1) / 2);
  return `${name.slice(0, room - 1 - tail)}…${name.slice(name.length - tail)}`;
}

/**
 * One toast per pending approval, naming the deadline; dismissed as soon as the move is decided or
 * expired, wherever that happened.
 */
export class ApprovalToasts implements IDisposable {
  constructor(
    private _model: CloudshiftModel,
    private _review: () => void,
    private _trans: TranslationBundle
  ) {
    _model.changed.connect(this._update, this);
  }

  enabled = true;

  get isDisposed(): boolean {
    return this._disposed;
  }

  dispose(): void {
    this._disposed = true;
    Signal.clearData(this);
    this._shown.forEach(id => Notification.dismiss(id));
    this._shown.clear();
  }

  private _update(): void {
    const pending = new Map(
      this._model.pending.map(view => [view.plan.digest, view])
    );
    for (const [digest, toastId] of [...this._shown]) {
      if (!pending.has(digest)) {
        Notification.dismiss(toastId);
        this._shown.delete(digest);
      }
    }
    for (const [digest, view] of pending) {
      if (this.enabled && !this._seen.has(digest)) {
        this._seen.add(digest);
        this._shown.set(digest, this._show(view));
      }
    }
  }

  private _show(view: IMigrationView): string {
    return Notification.emit(this._message(view), 'warning', {
      autoClose: false,
      actions: [
        {
          label: this._trans.__('Approve'),
          displayType: 'accent',
          callback: () => void this._approve(view)
        },
        { label: this._trans.__('Review'), callback: this._review }
      ]
    });
  }

  /** JupyterLab cuts what is longer: a long name gives way, the deadline does not. */
  private _message(view: IMigrationView): string {
    const words =
      view.phase === 'asking' ? this._again(view) : this._question(view);
    const room = LONGEST_MESSAGE - words('').length;
    return words(shortened(view.run_name, Math.max(room, SHORTEST_NAME)));
  }

  private _question(view: IMigrationView): (name: string) => string {
    const trans = this._trans;
    const { bill, expires_at } = view.plan;
    const saving = bill.saving_micro_usd_per_h;
    const amount = formatUsd(Math.abs(saving));
    const place = target(view.plan.target);
    const pause = formatDuration(plannedPause(view.plan));
    return name =>
      [
        trans.__('Move %1 to %2?', name, place),
        saving >= 0
          ? trans.__('Saves %1/h,', amount)
          : trans.__('Costs %1/h more,', amount),
        trans.__('pause ≈ %1.', pause),
        trans.__('Answer by %1, else it stays.', formatClock(expires_at)),
        ...(bill.simulated ? [trans.__('(simulated)')] : [])
      ].join(' ');
  }

  private _again(view: IMigrationView): (name: string) => string {
    const trans = this._trans;
    const { bill, expires_at } = view.plan;
    const total = formatUsd(bill.total_micro_usd);
    const place = target(view.plan.target);
    const until = formatClock(expires_at);
    return name =>
      [
        trans.__('The bill got worse: %1.', total),
        trans.__('Go on moving %1 to %2?', name, place),
        trans.__('Answer by %1, else it is rolled back.', until),
        ...(bill.simulated ? [trans.__('(simulated)')] : [])
      ].join(' ');
  }

  private async _approve(view: IMigrationView): Promise<void> {
    try {
      await this._model.decide(view, 'approve', 'toast');
    } catch (error) {
      Notification.error(
        this._trans.__('Not approved: %1', (error as Error).message),
        { autoClose: false }
      );
    }
  }

  private _disposed = false;
  private _seen = new Set<string>();
  private _shown = new Map<string, string>();
}
