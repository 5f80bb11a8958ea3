// What a board must be, by Grafana's own types: `make dashboard-types` puts every file of dashboards/ behind this.
import type { Dashboard, Panel, RowPanel } from '@grafana/schema';
import type { Options as BarGaugeOptions } from '@grafana/schema/dist/esm/raw/composable/bargauge/panelcfg/x/BarGaugePanelCfg_types.gen';
import type { Options as StatOptions } from '@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen';
import type {
  FieldConfig as TimeSeriesFields,
  Options as TimeSeriesOptions,
} from '@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen';

// JSON has the words of enumerations, not their names.
type Plain<T> = T extends string ? `${T}` : T extends object ? { [K in keyof T]: Plain<T[K]> } : T;

type Of<Kind extends string, Options, Fields> = Omit<Plain<Panel>, 'type' | 'options' | 'fieldConfig'> & {
  type: Kind;
  title: string;
  description: string;
  options: Plain<Options>;
  fieldConfig: {
    defaults: Plain<NonNullable<Panel['fieldConfig']>['defaults']> & { unit: string; custom?: Plain<Fields> };
    overrides: [];
  };
};

export type Board = Omit<Plain<Dashboard>, 'panels'> & {
  uid: string;
  panels: (
    | Plain<RowPanel>
    | Of<'timeseries', TimeSeriesOptions, TimeSeriesFields>
    | Of<'stat', StatOptions, never>
    | Of<'bargauge', BarGaugeOptions, never>
  )[];
};
