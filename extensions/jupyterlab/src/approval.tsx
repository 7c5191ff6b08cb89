import { TranslationBundle } from '@jupyterlab/translation';
import React, { useState } from 'react';

import {
  formatClock,
  formatCountdown,
  formatDuration,
  formatUsd
} from './format';
import { Outlook, plannedPause } from './outlook';
import { deciders } from './standing';
import { IBill, IMigrationView, IPlan, target } from './types';

interface IApprovalProps {
  view: IMigrationView;
  now: number;
  online: boolean;
  trans: TranslationBundle;
  decide: (verdict: 'approve' | 'reject') => Promise<void>;
}

/** One move that waits for a person: what it costs, until when, and the two buttons. */
export function ApprovalCard(props: IApprovalProps): JSX.Element {
  const { view, now, online, trans } = props;
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<string | null>(null);
  const { bill, expires_at, verdict } = view.plan;
  const left = expires_at - now;
  const answer = async (choice: 'approve' | 'reject') => {
    setBusy(true);
    setError(null);
    try {
      await props.decide(choice);
    } catch (reason) {
      setError((reason as Error).message);
    }
    setBusy(false);
  };
  const why = !online
    ? trans.__('The conductor is offline; the answer cannot be delivered now.')
    : left <= 0
      ? trans.__('The time to answer is over.')
      : undefined;
  const again = view.phase === 'asking';
  const title = again
    ? trans.__('Go on moving %1 to %2?', view.run_name, target(view.plan.target))
    : trans.__('Move %1 to %2?', view.run_name, target(view.plan.target));
  const worse = again && view.timeline[view.timeline.length - 1]?.detail;
  return (
    <li className="jp-cloudshift-approval" role="group" aria-label={title}>
      <div className="jp-cloudshift-approval-title">{title}</div>
      <div className="jp-cloudshift-sub">
        {trans.__('now on %1', target(view.plan.source))}
        {bill.simulated && <SimulatedBadge trans={trans} />}
      </div>
      {worse && (
        <div className="jp-cloudshift-advice" role="status">
          {trans.__('It is asked again: %1', worse)}
        </div>
      )}
      <BillTotals plan={view.plan} trans={trans} />
      {verdict === 'stay' && (
        <div className="jp-cloudshift-advice">
          {trans.__('The bill says: better stay.')} {bill.reasons[0] ?? ''}
        </div>
      )}
      <Outlook view={view} trans={trans} />
      <BillDetails bill={bill} trans={trans} />
      {deciders(view, trans).map(line => (
        <div key={line} className="jp-cloudshift-sub">
          {line}
        </div>
      ))}
      <div className="jp-cloudshift-deadline">
        {left > 0
          ? again
            ? trans.__(
                'Answer within %1 (by %2), else it is rolled back.',
                formatCountdown(left),
                formatClock(expires_at)
              )
            : trans.__(
                'Answer within %1 (by %2), else it stays where it is.',
                formatCountdown(left),
                formatClock(expires_at)
              )
          : again
            ? trans.__('Expired at %1; it is rolled back.', formatClock(expires_at))
            : trans.__('Expired at %1; it stays where it is.', formatClock(expires_at))}
      </div>
      <div className="jp-cloudshift-buttons">
        <button
          className="jp-mod-styled jp-mod-accept"
          disabled={busy || why !== undefined}
          title={why}
          onClick={() => void answer('approve')}
        >
          {trans.__('Approve')}
        </button>
        <button
          className="jp-mod-styled jp-mod-reject"
          disabled={busy || why !== undefined}
          title={why}
          onClick={() => void answer('reject')}
        >
          {trans.__('Reject')}
        </button>
      </div>
      {why && <div className="jp-cloudshift-sub">{why}</div>}
      {error && (
        <div className="jp-cloudshift-error" role="alert">
          {error}
        </div>
      )}
    </li>
  );
}

export function SimulatedBadge(props: { trans: TranslationBundle }): JSX.Element {
  return (
    <span
      className="jp-cloudshift-badge"
      title={props.trans.__('A simulated cloud on this machine; prices are examples.')}
    >
      {props.trans.__('simulated')}
    </span>
  );
}

function BillTotals(props: { plan: IPlan; trans: TranslationBundle }): JSX.Element {
  const { plan, trans } = props;
  const { bill } = plan;
  const rows: [string, string][] = [
    [
      bill.saving_micro_usd_per_h >= 0 ? trans.__('saves') : trans.__('costs more'),
      `${formatUsd(Math.abs(bill.saving_micro_usd_per_h))}/h`
    ],
    [trans.__('once'), formatUsd(bill.one_off_micro_usd)],
    [trans.__('bill total'), formatUsd(bill.total_micro_usd)],
    [trans.__('pause'), `≈ ${formatDuration(plannedPause(plan))}`],
    [
      trans.__('pays back'),
      bill.break_even_s === null
        ? trans.__('never')
        : trans.__('after %1', formatDuration(bill.break_even_s))
    ]
  ];
  return (
    <dl className="jp-cloudshift-facts">
      {rows.map(([label, value]) => (
        <div key={label}>
          <dt>{label}</dt>
          <dd>{value}</dd>
        </div>
      ))}
    </dl>
  );
}

function BillDetails(props: { bill: IBill; trans: TranslationBundle }): JSX.Element {
  return (
    <details className="jp-cloudshift-bill">
      <summary>{props.trans.__('Itemised bill')}</summary>
      <ul>
        {props.bill.items.map(item => (
          <li key={item.label}>
            <span>{item.label}</span>
            <span>
              {item.kind === 'note' ? '' : formatUsd(item.amount_micro_usd)}
            </span>
            <small>{`${item.basis} · ${item.source}`}</small>
          </li>
        ))}
      </ul>
    </details>
  );
}
