import { TranslationBundle } from '@jupyterlab/translation';
import React from 'react';

import { SimulatedBadge } from './approval';
import { formatAge, formatBytes, formatUsd } from './format';
import { runNotice, Standing } from './standing';
import { IMigrationView, IRunView, target } from './types';

interface IRunProps {
  run: IRunView;
  move: IMigrationView | undefined;
  now: number;
  trans: TranslationBundle;
  openDashboard: () => void;
}

/** One run: what it does, where, what it costs and how old its checkpoint is. */
export function RunCard(props: IRunProps): JSX.Element {
  const { run, move, now, trans } = props;
  return (
    <li className="jp-cloudshift-run" aria-label={run.name}>
      <div className="jp-cloudshift-run-head">
        <button
          className="jp-cloudshift-run-name"
          title={trans.__('Open the dashboard of %1', run.name)}
          onClick={props.openDashboard}
        >
          {run.name}
        </button>
        <span className="jp-cloudshift-state" data-state={run.state}>
          {run.state}
        </span>
      </div>
      <div className="jp-cloudshift-sub">
        {target(run.placement)}
        {run.simulated && <SimulatedBadge trans={trans} />}
      </div>
      <Sparkline losses={run.losses} label={trans.__('loss of %1', run.name)} />
      <dl className="jp-cloudshift-facts">
        {facts(run, now, trans).map(([label, value]) => (
          <div key={label}>
            <dt>{label}</dt>
            <dd>{value}</dd>
          </div>
        ))}
      </dl>
      {run.notice_until !== null && (
        <div className="jp-cloudshift-notice">{runNotice(run, now, trans)}</div>
      )}
      {move && (
        <MoveLine
          move={move}
          noticed={run.notice_until !== null}
          now={now}
          trans={trans}
        />
      )}
      {run.error && (
        <div className="jp-cloudshift-error">
          {run.error_rank === null
            ? run.error
            : trans.__('rank %1: %2', run.error_rank, run.error)}
        </div>
      )}
    </li>
  );
}

function facts(
  run: IRunView,
  now: number,
  trans: TranslationBundle
): [string, string][] {
  const final = run.ended_at !== null;
  const checkpoint =
    run.checkpoint_step === null
      ? trans.__('none yet')
      : final || run.checkpoint_at === null
        ? trans.__('step %1', run.checkpoint_step.toLocaleString('en-US'))
        : trans.__('%1 old', formatAge(now - run.checkpoint_at));
  return [
    [trans.__('step'), run.step === null ? '–' : run.step.toLocaleString('en-US')],
    [trans.__('loss'), run.loss === null ? '–' : run.loss.toPrecision(4)],
    [trans.__('price'), final ? '–' : `${formatUsd(run.price_micro_usd_per_h)}/h`],
    [trans.__('spent'), formatUsd(run.spent_micro_usd)],
    [trans.__('checkpoint'), checkpoint]
  ];
}

/** `noticed`: the run's own line counts its machine's time down already. */
function MoveLine(props: {
  move: IMigrationView;
  noticed: boolean;
  now: number;
  trans: TranslationBundle;
}): JSX.Element {
  const { move, noticed, now, trans } = props;
  const moved = move.bytes_moved ? ` · ${formatBytes(move.bytes_moved)}` : '';
  return (
    <div className="jp-cloudshift-move">
      <div role="status">
        {trans.__('→ %1: %2', target(move.plan.target), move.phase.replace(/_/g, ' '))}
        {moved}
      </div>
      <Standing
        view={move}
        countdown={!noticed}
        now={now}
        trans={trans}
      />
      {move.error && <div className="jp-cloudshift-error">{move.error}</div>}
    </div>
  );
}

const WIDTH = 120;
const HEIGHT = 24;

function Sparkline(props: {
  losses: [number, number][];
  label: string;
}): JSX.Element | null {
  const values = props.losses.map(([, loss]) => loss).filter(Number.isFinite);
  if (values.length < 2) {
    return null;
  }
  const low = Math.min(...values);
  const span = Math.max(...values) - low || 1;
  const points = values.map((value, index) => {
    const x = (index / (values.length - 1)) * WIDTH;
    const y = HEIGHT - 2 - ((value - low) / span) * (HEIGHT - 4);
    return `${x.toFixed(1)},${y.toFixed(1)}`;
  });
  return (
    <svg
      className="jp-cloudshift-spark"
      viewBox={`0 0 ${WIDTH} ${HEIGHT}`}
      preserveAspectRatio="none"
      role="img"
      aria-label={props.label}
    >
      <polyline points={points.join(' ')} />
    </svg>
  );
}
