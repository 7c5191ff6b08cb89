/** Numbers as people read them; the same rules as the Python surfaces. */

export function formatUsd(micro: number): string {
  const sign = micro < 0 ? '-' : '';
  const usd = Math.abs(micro) / 1e6;
  const digits = usd === 0 || usd >= 0.1 ? 2 : usd >= 0.0001 ? 4 : 6;
  return `${sign}$${usd.toFixed(digits)}`;
}

export function formatDuration(seconds: number): string {
  if (seconds < 60) {
    return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  }
  const total = Math.round(seconds);
  const minutes = Math.floor(total / 60);
  if (minutes < 60) {
    return total % 60 ? `${minutes} min ${total % 60} s` : `${minutes} min`;
  }
  const hours = Math.floor(minutes / 60);
  return minutes % 60 ? `${hours} h ${minutes % 60} min` : `${hours} h`;
}

/** Whole seconds, so that a ticking age does not flicker. */
export function formatAge(seconds: number): string {
  const whole = Math.max(0, Math.round(seconds));
  return whole < 10 ? `${whole} s` : formatDuration(whole);
}

/** `9:05` until a deadline, `2:09:05` from an hour on. */
export function formatCountdown(seconds: number): string {
  const whole = Math.max(0, Math.ceil(seconds));
  const two = (part: number) => String(part % 60).padStart(2, '0');
  const minutes = Math.floor(whole / 60);
  return minutes < 60
    ? `${minutes}:${two(whole)}`
    : `${Math.floor(minutes / 60)}:${two(minutes)}:${two(whole)}`;
}

export function formatClock(at: number): string {
  return new Date(at * 1000).toLocaleTimeString([], {
    hour: '2-digit',
    minute: '2-digit',
    second: '2-digit',
    hourCycle: 'h23'
  });
}

export function formatBytes(bytes: number): string {
  const units = ['B', 'kB', 'MB', 'GB', 'TB'];
  let value = bytes;
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${value.toFixed(unit ? 1 : 0)} ${units[unit]}`;
}

/** A share of futures: `0 %`, `0.4 %`, `12 %`. */
export function formatShare(part: number): string {
  const percent = part * 100;
  const digits = percent === 0 || percent >= 9.95 ? 0 : 1;
  return `${percent.toFixed(digits)} %`;
}
