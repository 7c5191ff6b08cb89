import { TranslationBundle } from '@jupyterlab/translation';
import React from 'react';

import { formatBytes, formatDuration } from './format';
import { awaitsDecision, IMigrationView, IRunView } from './types';

interface IProps {
  view: IMigrationView;
  /** Whether a notice is to be counted down here. */
  countdown: boolean;
  now: number;
  trans: TranslationBundle;
}

/** What is to be said of a move under way: who decided, notice, rehearsal, progress, pause. */
export function Standing(props: IProps): JSX.Element {
  const { view, countdown, now, trans } = props;
  const going = view.going;
  const lines = [
    ...deciders(view, trans),
    rehearsed(view, trans),
    progress(view, trans),
    pause(view, trans),
    view.partial ? trans.__('Not moved: %1', view.partial) : ''
  ].filter(line => line !== '');
  return (
    <>
      {view.notice_s !== null && (
        <div className="jp-cloudshift-notice">
          {notice(view, countdown ? now : null, trans)}
        </div>
      )}
      {lines.map(line => (
        <div key={line} className="jp-cloudshift-sub">
          {line}
        </div>
      ))}
      {going && going.total_bytes !== null && going.total_bytes > 0 && (
        <progress
          aria-label={trans.__('bytes copied')}
          max={going.total_bytes}
          value={Math.min(going.done_bytes, going.total_bytes)}
        />
      )}
    </>
  );
}

/** Everybody who counts so far, why the rule has not decided, and how many are to come. */
export function deciders(
  view: IMigrationView,
  trans: TranslationBundle
): string[] {
  const who = view.approvals.length
    ? view.approvals
    : view.decision
      ? [view.decision]
      : [];
  const words = who.map(each =>
    each.verdict === 'approve'
      ? trans.__('approved by %1', each.by)
      : trans.__('rejected by %1', each.by)
  );
  if (awaitsDecision(view) && view.waiting) {
    words.push(trans.__('its rule: %1', view.waiting));
  }
  const needed = view.plan.approvals_needed;
  if (awaitsDecision(view) && needed > 1) {
    words.push(trans.__('%1 of %2 approvals', who.length, needed));
  }
  return words;
}

/** A run whose machine will be taken away: when, and what will be saved by then. */
export function runNotice(
  run: IRunView,
  now: number,
  trans: TranslationBundle
): string {
  const left = Math.max(0, (run.notice_until ?? now) - now);
  const goes = trans.__('Notice: this machine goes in %1', whole(left));
  return run.notice ? `${goes}: ${run.notice}` : goes;
}

/** Without a time: only what becomes of the step. */
function notice(
  view: IMigrationView,
  now: number | null,
  trans: TranslationBundle
): string {
  const saved =
    view.sealed_step === null
      ? trans.__('Its newest step is saved first;')
      : trans.__('Step %1 is saved;', view.sealed_step);
  const words = `${saved} ${trans.__("the rest needs only the source's store.")}`;
  if (now === null) {
    return words;
  }
  const left = Math.max(0, (view.notice_s ?? 0) - Math.max(0, now - view.as_of));
  return `${trans.__("Notice: the source's machine goes in %1.", whole(left))} ${words}`;
}

function rehearsed(view: IMigrationView, trans: TranslationBundle): string {
  const at = view.timeline.map(entry => entry.phase).lastIndexOf('rehearsing');
  const after = at < 0 ? undefined : view.timeline[at + 1];
  return after && after.phase === 'draining' && after.detail
    ? trans.__('rehearsed: %1', after.detail)
    : '';
}

function progress(view: IMigrationView, trans: TranslationBundle): string {
  const { going } = view;
  if (!going) {
    return '';
  }
  const words = going.detail ? [going.detail] : [];
  if (going.total_bytes) {
    const part = Math.min(1, going.done_bytes / going.total_bytes);
    words.push(
      trans.__(
        '%1 of %2 (%3%)',
        formatBytes(going.done_bytes),
        formatBytes(going.total_bytes),
        Math.round(part * 100)
      )
    );
  } else if (going.done_bytes) {
    words.push(formatBytes(going.done_bytes));
  }
  if (going.bytes_per_s) {
    words.push(`${formatBytes(going.bytes_per_s)}/s`);
  }
  if (going.eta_s !== null) {
    words.push(trans.__('%1 left', formatDuration(going.eta_s)));
  }
  return words.join(' · ');
}

function pause(view: IMigrationView, trans: TranslationBundle): string {
  if (view.pause_s === null) {
    return '';
  }
  return view.still_s === null
    ? trans.__('pause %1', formatDuration(view.pause_s))
    : trans.__(
        'pause %1 (%2 of it nothing was computed)',
        formatDuration(view.pause_s),
        formatDuration(view.still_s)
      );
}

/** Whole seconds, so that a countdown does not flicker. */
function whole(seconds: number): string {
  return formatDuration(Math.round(seconds)).replace(/\.0 s$/, ' s');
}
