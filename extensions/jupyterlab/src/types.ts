/** The JSON of the conductor's views, as far as this page reads them (money in micro-dollars, times in seconds). */

export interface IPlacement {
  cloud: string;
  region: string;
  instance_type: string;
  nodes: number;
  ranks_per_node: number;
}

export interface IRunView {
  run_id: string;
  name: string;
  state: string;
  placement: IPlacement;
  simulated: boolean;
  created_at: number;
  step: number | null;
  loss: number | null;
  progress_at: number | null;
  price_micro_usd_per_h: number;
  spent_micro_usd: number;
  checkpoint_step: number | null;
  checkpoint_at: number | null;
  migration_id: string | null;
  error: string | null;
  error_rank: number | null;
  notice_until: number | null;
  notice: string;
  losses: [number, number][];
  ended_at: number | null;
  as_of: number;
}

export interface IBillItem {
  label: string;
  amount_micro_usd: number;
  basis: string;
  source: string;
  kind: string;
  simulated: boolean;
}

export interface IBill {
  items: IBillItem[];
  total_micro_usd: number;
  one_off_micro_usd: number;
  saving_micro_usd_per_h: number;
  break_even_s: number | null;
  pause_s: number;
  simulated: boolean;
  reasons: string[];
}

export interface IClosing {
  kind: string;
  pause_s: number;
  still_s: number;
  num_bytes: number;
  replayed_steps: number;
  basis: string;
}

export interface IFallback {
  placement: IPlacement;
  url: string;
}

export interface IPlan {
  source: IPlacement;
  target: IPlacement;
  bill: IBill;
  verdict: 'move' | 'stay';
  expires_at: number;
  digest: string;
  closing: string;
  closings: IClosing[];
  rehearsal_steps: number;
  tolerance: number;
  missing_nodes: 'roll-back' | 'wait' | 'shrink' | 'elsewhere';
  min_nodes: number;
  fallbacks: IFallback[];
  limit_micro_usd: number;
  approvals_needed: number;
}

export interface ISpread {
  p10: number;
  p50: number;
  p90: number;
}

/** What happened in many simulated futures; never measured. */
export interface IFutures {
  num: number;
  /** Of those that arrived; null when none did. */
  pause_s: ISpread | null;
  cost_micro_usd: ISpread;
  finish_s: ISpread;
  rolled_back: number;
  lost_steps: number;
  basis: string;
}

export interface IGoing {
  done_bytes: number;
  total_bytes: number | null;
  bytes_per_s: number | null;
  eta_s: number | null;
  detail: string;
}

export interface IPhaseTime {
  phase: string;
  at: number;
  detail: string;
}

export interface IDecision {
  decision_id: string;
  plan_digest: string;
  verdict: 'approve' | 'reject';
  by: string;
  at: number;
}

export interface IMigrationView {
  migration_id: string;
  run_id: string;
  run_name: string;
  phase: string;
  plan: IPlan;
  timeline: IPhaseTime[];
  decision: IDecision | null;
  approvals: IDecision[];
  error: string | null;
  sealed_step: number | null;
  bytes_moved: number;
  bytes_state: number;
  pause_s: number | null;
  still_s: number | null;
  futures: IFutures | null;
  going: IGoing | null;
  partial: string | null;
  waiting: string;
  notice_s: number | null;
  as_of: number;
}

/** `since` is when the server extension lost sight of the conductor. */
export interface IProblem {
  kind: string;
  message: string;
  action: string;
  since?: number;
}

export const FINAL_PHASES = new Set([
  'source_retired',
  'rejected',
  'expired',
  'rolled_back'
]);

/** Nothing happens before somebody decides. */
export function awaitsDecision(view: IMigrationView): boolean {
  return view.phase === 'proposed' || view.phase === 'asking';
}

/** What a person types after `--to`. */
export function target(placement: IPlacement): string {
  return `${placement.cloud}:${placement.region}`;
}
