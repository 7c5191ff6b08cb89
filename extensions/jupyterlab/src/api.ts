import { URLExt } from '@jupyterlab/coreutils';
import { ServerConnection } from '@jupyterlab/services';

import { IDecision, IMigrationView, IProblem, IRunView } from './types';

/** The server answered with a problem: one line for a person, and what kind it is. */
export class ProblemError extends Error {
  constructor(
    readonly problem: IProblem,
    readonly status: number
  ) {
    super(problem.message);
  }
}

/** Talks to our Jupyter server extension; login, XSRF and URL prefix come from JupyterLab. */
export class Api {
  private _settings = ServerConnection.makeSettings();

  /** Where the dashboard lives on this server, whatever its prefix. */
  dashboardUrl(theme: 'dark' | 'default', runId?: string): string {
    const query: Record<string, string> = { theme };
    if (runId) {
      query.run = runId;
    }
    return (
      URLExt.join(this._settings.baseUrl, 'cloudshift/dashboard/') +
      URLExt.objectToQueryString(query)
    );
  }

  runs(): Promise<IRunView[]> {
    return this._request('runs');
  }

  migrations(): Promise<IMigrationView[]> {
    return this._request('migrations');
  }

  startConductor(): Promise<unknown> {
    return this._request('conductor/start', {});
  }

  decide(migrationId: string, decision: IDecision): Promise<unknown> {
    const id = encodeURIComponent(migrationId);
    return this._request(`migrations/${id}/decision`, decision);
  }

  private async _request<T>(path: string, body?: unknown): Promise<T> {
    const url = URLExt.join(this._settings.baseUrl, 'cloudshift/api', path);
    const init: RequestInit =
      body === undefined
        ? { method: 'GET', cache: 'no-store' }
        : { method: 'POST', body: JSON.stringify(body) };
    const response = await ServerConnection.makeRequest(
      url,
      init,
      this._settings
    );
    const text = await response.text();
    if (!response.ok) {
      throw new ProblemError(readProblem(text, response), response.status);
    }
    return JSON.parse(text) as T;
  }
}

function readProblem(text: string, response: Response): IProblem {
  try {
    const problem = JSON.parse(text) as IProblem;
    if (typeof problem.message === 'string') {
      return problem;
    }
  } catch (error) {
    console.debug('cloudshift: the answer is not JSON', error);
  }
  const message =
    response.status === 404
      ? 'the CloudShift server extension is not enabled; run: jupyter server extension enable cloudshift_lab'
      : `the Jupyter server answered ${response.status} ${response.statusText}`;
  return { kind: 'Unavailable', message, action: 'retry' };
}
