import { ReactWidget } from '@jupyterlab/ui-components';
import { TranslationBundle } from '@jupyterlab/translation';
import React, { useEffect, useState } from 'react';

import { ApprovalCard } from './approval';
import { formatClock } from './format';
import { cloudshiftIcon } from './icon';
import { CloudshiftModel, IState } from './model';
import { RunCard } from './runs';
import {
  awaitsDecision,
  FINAL_PHASES,
  IMigrationView,
  IRunView
} from './types';

const FINAL_STATES = new Set(['stopped', 'finished', 'failed', 'lost']);

/** The left side panel: conductor state, pending approvals, runs. */
export class CloudshiftPanel extends ReactWidget {
  constructor(
    private _model: CloudshiftModel,
    private _openDashboard: (runId?: string) => void,
    private _trans: TranslationBundle
  ) {
    super();
    this.id = 'cloudshift-lab:panel';
    this.addClass('jp-cloudshift-panel');
    this.title.icon = cloudshiftIcon;
    this.title.caption = _trans.__('CloudShift runs and approvals');
    this.node.setAttribute('role', 'region');
    this.node.setAttribute('aria-label', this.title.caption);
  }

  protected render(): JSX.Element {
    return (
      <PanelBody
        model={this._model}
        openDashboard={this._openDashboard}
        trans={this._trans}
      />
    );
  }
}

interface IBodyProps {
  model: CloudshiftModel;
  openDashboard: (runId?: string) => void;
  trans: TranslationBundle;
}

function PanelBody(props: IBodyProps): JSX.Element {
  const { model, trans } = props;
  const state = useModelState(model);
  const now = useNow();
  const online = state.online === true;
  const pending = state.migrations.filter(awaitsDecision);
  const moves = movesByRun(state.migrations);
  return (
    <>
      <ConductorLine {...props} state={state} />
      {pending.length > 0 && (
        <section aria-label={trans.__('Waiting for your answer')}>
          <h3>{trans.__('Waiting for your answer')}</h3>
          <ul>
            {pending.map(view => (
              <ApprovalCard
                key={view.migration_id}
                view={view}
                now={now}
                online={online}
                trans={trans}
                decide={verdict => model.decide(view, verdict, 'side panel')}
              />
            ))}
          </ul>
        </section>
      )}
      <section
        aria-label={trans.__('Runs')}
        className={online ? '' : 'jp-cloudshift-stale'}
      >
        <h3>
          {online || state.fetchedAt === 0
            ? trans.__('Runs')
            : trans.__('Runs as seen at %1', formatClock(state.fetchedAt))}
        </h3>
        <ul>
          {sorted(state.runs).map(run => (
            <RunCard
              key={run.run_id}
              run={run}
              move={moves.get(run.run_id)}
              now={now}
              trans={trans}
              openDashboard={() => props.openDashboard(run.run_id)}
            />
          ))}
        </ul>
        {online && state.runs.length === 0 && <EmptyHint trans={trans} />}
      </section>
    </>
  );
}

function ConductorLine(props: IBodyProps & { state: IState }): JSX.Element {
  const { model, state, trans } = props;
  const [starting, setStarting] = useState(false);
  const [error, setError] = useState<string | null>(null);
  const start = async () => {
    setStarting(true);
    setError(null);
    try {
      await model.startConductor();
    } catch (reason) {
      setError((reason as Error).message);
    }
    setStarting(false);
  };
  const mode =
    state.online === null ? 'unknown' : state.online ? 'online' : 'offline';
  return (
    <header className="jp-cloudshift-head">
      <div className="jp-cloudshift-conductor" data-mode={mode} role="status">
        {conductorText(state, trans)}
      </div>
      <div className="jp-cloudshift-buttons">
        {mode === 'offline' && (
          <button
            className="jp-mod-styled jp-mod-accept"
            disabled={starting}
            onClick={() => void start()}
          >
            {starting ? trans.__('Starting…') : trans.__('Start conductor')}
          </button>
        )}
        <button
          className="jp-mod-styled"
          onClick={() => props.openDashboard()}
        >
          {trans.__('Open dashboard')}
        </button>
      </div>
      {mode === 'offline' && state.problem && (
        <div className="jp-cloudshift-sub">{state.problem.message}</div>
      )}
      {error && (
        <div className="jp-cloudshift-error" role="alert">
          {error}
        </div>
      )}
    </header>
  );
}

function conductorText(state: IState, trans: TranslationBundle): string {
  if (state.online === null) {
    return trans.__('Looking for the conductor…');
  }
  if (state.online) {
    return trans.__('Conductor online');
  }
  return state.offlineSince === null
    ? trans.__('Conductor offline, retrying')
    : trans.__(
        'Conductor offline since %1, retrying',
        formatClock(state.offlineSince)
      );
}

function EmptyHint(props: { trans: TranslationBundle }): JSX.Element {
  return (
    <p className="jp-cloudshift-sub">
      {props.trans.__('No runs yet. In a notebook:')}
      <code>%load_ext cloudshift_lab</code>
      <code>%%cloudshift train --name first</code>
    </p>
  );
}

function useModelState(model: CloudshiftModel): IState {
  const [state, setState] = useState(model.state);
  useEffect(() => {
    const update = (_: CloudshiftModel, next: IState) => setState(next);
    model.changed.connect(update);
    setState(model.state);
    return () => {
      model.changed.disconnect(update);
    };
  }, [model]);
  return state;
}

/** The time in seconds, once a second, for ages and countdowns. */
function useNow(): number {
  const [now, setNow] = useState(Date.now() / 1000);
  useEffect(() => {
    const timer = window.setInterval(() => setNow(Date.now() / 1000), 1000);
    return () => window.clearInterval(timer);
  }, []);
  return now;
}

function movesByRun(
  migrations: IMigrationView[]
): Map<string, IMigrationView> {
  const open = migrations.filter(
    view => view.phase !== 'proposed' && !FINAL_PHASES.has(view.phase)
  );
  return new Map(open.map(view => [view.run_id, view]));
}

/** Living runs first, then the newest. */
function sorted(runs: IRunView[]): IRunView[] {
  const rank = (run: IRunView) => (FINAL_STATES.has(run.state) ? 1 : 0);
  return [...runs].sort(
    (a, b) => rank(a) - rank(b) || b.created_at - a.created_at
  );
}
