import { TranslationBundle } from '@jupyterlab/translation';
import React from 'react';

import { formatBytes, formatDuration, formatShare, formatUsd } from './format';
import { IFutures, IMigrationView, IPlan, ISpread, target } from './types';

interface IProps {
  view: IMigrationView;
  trans: TranslationBundle;
}

/** What a decision rests on beside the bill: closings, rehearsal, missing nodes, futures. */
export function Outlook(props: IProps): JSX.Element {
  const { view, trans } = props;
  const { plan, futures } = view;
  return (
    <div className="jp-cloudshift-outlook">
      {plan.closings.length > 0 && <Closings plan={plan} trans={trans} />}
      {promises(plan, trans).map(line => (
        <div key={line} className="jp-cloudshift-sub">
          {line}
        </div>
      ))}
      {futures && <Futures futures={futures} trans={trans} />}
    </div>
  );
}

/** Until the first new step at the target: the chosen closing's pause, else the bill's. */
export function plannedPause(plan: IPlan): number {
  const chosen = plan.closings.find(way => way.kind === plan.closing);
  return chosen ? chosen.pause_s : plan.bill.pause_s;
}

function Closings(props: { plan: IPlan; trans: TranslationBundle }): JSX.Element {
  const { plan, trans } = props;
  const name = (kind: string) =>
    kind === 'replay' ? trans.__('repeat steps') : trans.__('copy bytes');
  return (
    <table className="jp-cloudshift-table">
      <thead>
        <tr>
          <th scope="col">{trans.__('closing')}</th>
          <th scope="col">{trans.__('pause')}</th>
          <th scope="col">{trans.__('still')}</th>
          <th scope="col">{trans.__('bytes')}</th>
        </tr>
      </thead>
      <tbody>
        {plan.closings.map(way => (
          <tr
            key={way.kind}
            title={way.basis}
            data-chosen={way.kind === plan.closing}
          >
            <td>
              {way.kind === plan.closing
                ? trans.__('▸ %1', name(way.kind))
                : name(way.kind)}
            </td>
            <td>{formatDuration(way.pause_s)}</td>
            <td title={trans.__('no optimizer step runs anywhere for so long')}>
              {formatDuration(way.still_s)}
            </td>
            <td>{formatBytes(way.num_bytes)}</td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}

function Futures(props: {
  futures: IFutures;
  trans: TranslationBundle;
}): JSX.Element {
  const { futures, trans } = props;
  const usd = (value: number) => formatUsd(Math.round(value));
  const rows: [string, ISpread | null, (value: number) => string][] = [
    [trans.__('pause'), futures.pause_s, formatDuration],
    [trans.__('cost'), futures.cost_micro_usd, usd],
    [trans.__('over after'), futures.finish_s, formatDuration]
  ];
  return (
    <div className="jp-cloudshift-futures" title={futures.basis}>
      <div>
        {trans.__('%1 futures of this click', futures.num.toLocaleString('en-US'))}
        <span
          className="jp-cloudshift-badge"
          title={trans.__('Drawn from measurements and assumptions; nothing of it has happened.')}
        >
          {trans.__('simulated')}
        </span>
      </div>
      <table className="jp-cloudshift-table">
        <thead>
          <tr>
            <th scope="col">{trans.__('below')}</th>
            <th scope="col">{trans.__('1 in 10')}</th>
            <th scope="col">{trans.__('half')}</th>
            <th scope="col">{trans.__('9 in 10')}</th>
          </tr>
        </thead>
        <tbody>
          {rows.map(([label, spread, words]) => (
            <tr key={label}>
              <td>{label}</td>
              {spread === null ? (
                <td colSpan={3}>{trans.__('none of them arrived')}</td>
              ) : (
                [spread.p10, spread.p50, spread.p90].map((value, index) => (
                  <td key={index}>{words(value)}</td>
                ))
              )}
            </tr>
          ))}
        </tbody>
      </table>
      <div className="jp-cloudshift-sub">
        {trans.__(
          '%1 are rolled back, %2 lose steps',
          formatShare(futures.rolled_back),
          formatShare(futures.lost_steps)
        )}
      </div>
    </div>
  );
}

function promises(plan: IPlan, trans: TranslationBundle): string[] {
  return [
    rehearsal(plan, trans),
    missingNodes(plan, trans),
    plan.limit_micro_usd
      ? trans.__(
          'The move itself may cost %1; above it is undone, up to the commit.',
          formatUsd(plan.limit_micro_usd)
        )
      : ''
  ].filter(line => line !== '');
}

function rehearsal(plan: IPlan, trans: TranslationBundle): string {
  if (!plan.rehearsal_steps) {
    return plan.closings.length > 0
      ? trans.__("No rehearsal: the target's first step comes after the commit.")
      : '';
  }
  const how = !plan.tolerance
    ? trans.__('bit by bit')
    : plan.closing === 'copy'
      ? trans.__('within %1 of its size', plan.tolerance)
      : trans.__(
          'bit by bit (if only within %1, bytes are copied, no step repeated)',
          plan.tolerance
        );
  return trans.__(
    "Rehearsal: %1 steps there before the commit; each loss must equal the source's %2.",
    plan.rehearsal_steps,
    how
  );
}

function missingNodes(plan: IPlan, trans: TranslationBundle): string {
  if (plan.target.nodes < 2 && plan.missing_nodes === 'roll-back') {
    return '';
  }
  const places = plan.fallbacks.map(other => target(other.placement));
  const does = {
    'roll-back': trans.__('the move is rolled back'),
    wait: trans.__('it waits for them, and rolls back if they do not come'),
    shrink: trans.__(
      'it goes on with %1 or more of %2, else it is rolled back',
      plan.min_nodes,
      plan.target.nodes
    ),
    elsewhere: trans.__('it goes to %1', places.join(', then '))
  }[plan.missing_nodes];
  return trans.__('If nodes are missing: %1.', does);
}
