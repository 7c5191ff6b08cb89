import { Notification } from '@jupyterlab/apputils';
import { TranslationBundle } from '@jupyterlab/translation';
import { IDisposable } from '@lumino/disposable';
import { Signal } from '@lumino/signaling';

import { formatClock, formatDuration, formatUsd } from './format';
import { CloudshiftModel } from './model';
import { plannedPause } from './outlook';
import { IMigrationView, target } from './types';

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
    const { bill, expires_at } = view.plan;
    const saving = bill.saving_micro_usd_per_h;
    const amount = formatUsd(Math.abs(saving));
    const place = target(view.plan.target);
    const message = [
      view.phase === 'asking'
        ? this._trans.__('The bill got worse. Go on moving %1 to %2?', view.run_name, place)
        : this._trans.__('Move %1 to %2?', view.run_name, place),
      saving >= 0
        ? this._trans.__('Saves %1 per hour,', amount)
        : this._trans.__('Costs %1 more per hour,', amount),
      this._trans.__('pause about %1.', formatDuration(plannedPause(view.plan))),
      view.phase === 'asking'
        ? this._trans.__('Answer by %1, else it is rolled back.', formatClock(expires_at))
        : this._trans.__('Answer by %1, else it stays.', formatClock(expires_at))
    ].join(' ');
    return Notification.emit(
      bill.simulated ? `${message} ${this._trans.__('(simulated)')}` : message,
      'warning',
      {
        autoClose: false,
        actions: [
          {
            label: this._trans.__('Approve'),
            displayType: 'accent',
            callback: () => void this._approve(view)
          },
          { label: this._trans.__('Review'), callback: this._review }
        ]
      }
    );
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
