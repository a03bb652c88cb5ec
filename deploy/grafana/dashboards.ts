/** Grafana's JSON of a dashboard, for any Grafana since 10. */
import {
  LegendDisplayMode,
  LegendPlacement,
  StackingConfigBuilder,
  StackingMode,
  TooltipDisplayMode,
  VisibilityMode,
  VizLegendOptionsBuilder,
  VizTooltipOptionsBuilder,
} from '@grafana/grafana-foundation-sdk/common';
import {
  DashboardBuilder,
  DashboardCursorSync,
  DashboardLinkBuilder,
  DashboardLinkType,
  DatasourceVariableBuilder,
  QueryVariableBuilder,
  RowBuilder,
  ThresholdsConfigBuilder,
  ThresholdsMode,
  VariableRefresh,
} from '@grafana/grafana-foundation-sdk/dashboard';
import { DataqueryBuilder, PromQueryFormat } from '@grafana/grafana-foundation-sdk/prometheus';
import { PanelBuilder as StatBuilder } from '@grafana/grafana-foundation-sdk/stat';
import { PanelBuilder as TableBuilder } from '@grafana/grafana-foundation-sdk/table';
import { PanelBuilder as ChartBuilder } from '@grafana/grafana-foundation-sdk/timeseries';
import type { Chart, Dashboard, Events, Panel, Stat, Table, Unit } from '../dashboards/dashboard.ts';
import type { Query, Scope } from '../dashboards/queries.ts';

// biome-ignore lint/suspicious/noTemplateCurlyInString: Grafana's own placeholder
const SOURCE = { type: 'prometheus', uid: '${datasource}' };
/** What the dashboards' variables and Grafana itself put in. */
const SCOPE: Scope = { matchers: 'job="$job"', window: '$__rate_interval', keep: [] };
/** Of 30 pixels. */
const HEIGHTS = { stat: 4, chart: 8, table: 9, events: 7 };
const UNITS: Record<Unit, string> = {
  count: 'short',
  ratio: 'percentunit',
  seconds: 's',
  bytes: 'bytes',
  bytesPerSecond: 'binBps',
  perSecond: 'ops',
  imagesPerSecond: 'short',
  nats: 'short',
};

export function grafanaDashboard(dashboard: Dashboard): object {
  const builder = new DashboardBuilder(dashboard.title)
    .uid(`braid-${dashboard.name}`)
    .description(dashboard.about)
    .tags(['braid'])
    .time({ from: 'now-1h', to: 'now' })
    .refresh('10s')
    .timezone('browser')
    .readonly()
    .tooltip(DashboardCursorSync.Crosshair)
    .withVariable(new DatasourceVariableBuilder('datasource').label('Prometheus').type('prometheus'))
    .withVariable(
      new QueryVariableBuilder('job')
        .label('Run')
        .datasource(SOURCE)
        .query({ query: 'label_values(braid_run_info, job)', refId: 'job' })
        .refresh(VariableRefresh.OnTimeRangeChanged),
    )
    .link(
      new DashboardLinkBuilder('Braid')
        .type(DashboardLinkType.Dashboards)
        .tags(['braid'])
        .includeVars(true)
        .keepTime(true),
    );
  for (const { title, panels } of dashboard.rows) {
    builder.withRow(new RowBuilder(title));
    for (const panel of panels) {
      builder.withPanel(
        panelBuilder(panel)
          .title(panel.title)
          .description(panel.about)
          .datasource(SOURCE)
          .span(panel.width)
          .height(HEIGHTS[panel.kind]),
      );
    }
  }
  return builder.build();
}

function panelBuilder(panel: Panel): StatBuilder | ChartBuilder | TableBuilder {
  switch (panel.kind) {
    case 'stat':
      return stat(panel);
    case 'chart':
      return chart(panel);
    case 'table':
      return table(panel);
    case 'events':
      return events(panel);
  }
}

function stat({ unit, query, thresholds }: Stat): StatBuilder {
  const builder = new StatBuilder().unit(UNITS[unit]).withTarget(target('A', query).instant());
  if (thresholds === undefined) return builder;
  const { warning, critical } = thresholds;
  const steps = [
    { value: null, color: 'green' },
    { value: warning, color: 'orange' },
    ...(critical === undefined ? [] : [{ value: critical, color: 'red' }]),
  ];
  return builder.thresholds(new ThresholdsConfigBuilder().mode(ThresholdsMode.Absolute).steps(steps));
}

function chart({ unit, lines, stacked, none }: Chart): ChartBuilder {
  const builder = new ChartBuilder()
    .unit(UNITS[unit])
    .lineWidth(2)
    .fillOpacity(stacked ? 30 : 0)
    .showPoints(VisibilityMode.Auto)
    .spanNulls(false)
    .legend(
      new VizLegendOptionsBuilder()
        .showLegend(true)
        .displayMode(LegendDisplayMode.List)
        .placement(LegendPlacement.Bottom)
        .calcs(['lastNotNull']),
    )
    .tooltip(new VizTooltipOptionsBuilder().mode(TooltipDisplayMode.Multi));
  if (none !== undefined) builder.noValue(none);
  if (stacked) builder.stacking(new StackingConfigBuilder().mode(StackingMode.Normal));
  for (const [i, { legend, query }] of lines.entries()) {
    builder.withTarget(target(refId(i), query).legendFormat(legend).range());
  }
  return builder;
}

function table({ by, columns }: Table): TableBuilder {
  const builder = new TableBuilder();
  for (const [i, { title, unit, query }] of columns.entries()) {
    builder
      .withTarget(target(refId(i), query).instant().format(PromQueryFormat.Table))
      .overrideByName(title, [{ id: 'unit', value: UNITS[unit] }]);
  }
  const renamed = columns.map(({ title }, i) => [columns.length === 1 ? 'Value' : `Value #${refId(i)}`, title]);
  return builder.withTransformation({ id: 'merge', options: {} }).withTransformation({
    id: 'organize',
    options: {
      excludeByName: { Time: true },
      indexByName: Object.fromEntries([...by, ...renamed.map(([value]) => value)].map((name, i) => [name, i])),
      renameByName: Object.fromEntries(renamed),
    },
  });
}

function events(_: Events): TableBuilder {
  const firing = new DataqueryBuilder()
    .refId('A')
    .expr(`max by (severity, alertname, instance) (ALERTS{${SCOPE.matchers},alertstate="firing"})`)
    .instant()
    .format(PromQueryFormat.Table);
  return new TableBuilder()
    .withTarget(firing)
    .noValue('no alert fires')
    .withTransformation({ id: 'organize', options: { excludeByName: { Time: true, Value: true } } });
}

const refId = (i: number) => String.fromCharCode(65 + i);

const target = (id: string, query: Query) => new DataqueryBuilder().refId(id).expr(query.promql(SCOPE));
