import { ILayoutRestorer, JupyterFrontEnd } from '@jupyterlab/application';
import {
  ICommandPalette,
  IThemeManager,
  MainAreaWidget,
  WidgetTracker
} from '@jupyterlab/apputils';
import { TranslationBundle } from '@jupyterlab/translation';
import { IFrame } from '@jupyterlab/ui-components';

import { Api } from './api';
import { cloudshiftIcon } from './icon';

const OPEN_DASHBOARD = 'cloudshift:open-dashboard';

interface IDashboardOptions {
  palette: ICommandPalette | null;
  restorer: ILayoutRestorer | null;
  themes: IThemeManager | null;
  trans: TranslationBundle;
}

/** The command that opens the live dashboard as a tab; returns what the side panel calls. */
export function addDashboard(
  app: JupyterFrontEnd,
  api: Api,
  options: IDashboardOptions
): (runId?: string) => void {
  const { palette, restorer, themes, trans } = options;
  const tracker = new WidgetTracker<MainAreaWidget<IFrame>>({
    namespace: 'cloudshift-dashboard'
  });
  const runs = new WeakMap<IFrame, string | undefined>();
  const load = (frame: IFrame) => {
    const dark = themes?.theme ? !themes.isLight(themes.theme) : false;
    frame.url = api.dashboardUrl(dark ? 'dark' : 'default', runs.get(frame));
  };

  app.commands.addCommand(OPEN_DASHBOARD, {
    label: trans.__('CloudShift Dashboard'),
    caption: trans.__('Loss, throughput and cost of all runs, live'),
    icon: cloudshiftIcon,
    execute: args => {
      const runId = args.run as string | undefined;
      let widget = tracker.find(() => true);
      if (widget === undefined) {
        widget = makeTab(trans);
        runs.set(widget.content, runId);
        load(widget.content);
        void tracker.add(widget);
        app.shell.add(widget, 'main');
      } else if (runId && runs.get(widget.content) !== runId) {
        runs.set(widget.content, runId);
        load(widget.content);
      }
      app.shell.activateById(widget.id);
    }
  });
  palette?.addItem({
    command: OPEN_DASHBOARD,
    category: trans.__('CloudShift')
  });
  themes?.themeChanged.connect((_, change) => {
    if (change.oldValue) {
      tracker.forEach(widget => load(widget.content));
    }
  });
  void restorer?.restore(tracker, {
    command: OPEN_DASHBOARD,
    name: () => 'dashboard'
  });
  return runId =>
    void app.commands.execute(OPEN_DASHBOARD, runId ? { run: runId } : {});
}

function makeTab(trans: TranslationBundle): MainAreaWidget<IFrame> {
  const frame = new IFrame({
    sandbox: ['allow-same-origin', 'allow-scripts', 'allow-popups', 'allow-forms']
  });
  const widget = new MainAreaWidget({ content: frame });
  widget.id = 'cloudshift-lab:dashboard';
  widget.title.label = trans.__('CloudShift');
  widget.title.icon = cloudshiftIcon;
  widget.title.closable = true;
  return widget;
}
