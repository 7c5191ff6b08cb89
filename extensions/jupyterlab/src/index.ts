import {
  ILabShell,
  ILayoutRestorer,
  JupyterFrontEnd,
  JupyterFrontEndPlugin
} from '@jupyterlab/application';
import { ICommandPalette, IThemeManager } from '@jupyterlab/apputils';
import { ISettingRegistry } from '@jupyterlab/settingregistry';
import { ITranslator, nullTranslator } from '@jupyterlab/translation';

import { Api } from './api';
import { addDashboard } from './dashboard';
import { CloudshiftModel } from './model';
import { CloudshiftPanel } from './panel';
import { ApprovalToasts } from './toasts';

const PLUGIN_ID = 'cloudshift-lab:plugin';
const SHOW_RUNS = 'cloudshift:show-runs';

/** Runs and approvals in the left side bar, a toast per pending approval, the dashboard as a tab. */
const plugin: JupyterFrontEndPlugin<void> = {
  id: PLUGIN_ID,
  description: 'Runs, approvals and the live dashboard of CloudShift Lab.',
  autoStart: true,
  optional: [
    ILabShell,
    ILayoutRestorer,
    ICommandPalette,
    ISettingRegistry,
    IThemeManager,
    ITranslator
  ],
  activate: (
    app: JupyterFrontEnd,
    labShell: ILabShell | null,
    restorer: ILayoutRestorer | null,
    palette: ICommandPalette | null,
    settings: ISettingRegistry | null,
    themes: IThemeManager | null,
    translator: ITranslator | null
  ) => {
    const trans = (translator ?? nullTranslator).load('cloudshift_lab');
    const api = new Api();
    const model = new CloudshiftModel(api, app.serviceManager.events);
    const openDashboard = addDashboard(app, api, {
      palette,
      restorer,
      themes,
      trans
    });
    const panel = new CloudshiftPanel(model, openDashboard, trans);
    app.shell.add(panel, 'left', { rank: 650 });
    restorer?.add(panel, panel.id);

    const showRuns = () => {
      labShell?.activateById(panel.id) ?? app.shell.activateById(panel.id);
    };
    app.commands.addCommand(SHOW_RUNS, {
      label: trans.__('CloudShift Runs and Approvals'),
      execute: showRuns
    });
    palette?.addItem({ command: SHOW_RUNS, category: trans.__('CloudShift') });

    const toasts = new ApprovalToasts(model, showRuns, trans);
    void followSettings(settings, model, toasts);
  }
};

async function followSettings(
  registry: ISettingRegistry | null,
  model: CloudshiftModel,
  toasts: ApprovalToasts
): Promise<void> {
  if (registry === null) {
    return;
  }
  const settings = await registry.load(PLUGIN_ID);
  const apply = () => {
    toasts.enabled = settings.get('toasts').composite as boolean;
    model.pollSeconds = settings.get('pollSeconds').composite as number;
  };
  settings.changed.connect(apply);
  apply();
}

export default plugin;
