"""The metrics as a collector of prometheus_client. Only the process that has the admin listener loads this module."""

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from sanitizer import FORM, __version__
from sanitizer.operate.metrics import FAMILIES, Family
from sanitizer.operate.snapshots import Snapshots


class SnapshotCollector(Collector):
    """Collects the sum of ``snapshots``, and whether the gateway is ready."""

    def __init__(self, snapshots: Snapshots, ready: Callable[[], bool]) -> None:
        self._snapshots = snapshots
        self._ready = ready

    def collect(self) -> Iterator[Metric]:
        totals, gauges = self._snapshots.sum()
        numbers: dict[tuple[str, ...], float] = {
            **totals,
            **gauges,
            ("sanitizer_ready",): float(self._ready()),
            ("sanitizer_build_info", __version__, FORM): 1,
        }
        by_name: dict[str, dict[tuple[str, ...], float]] = {family.name: {} for family in FAMILIES}
        for (name, *values), number in numbers.items():
            by_name[name][tuple(values)] = number
        for family in FAMILIES:
            make = _histogram if family.kind == "histogram" else _counter_or_gauge
            yield make(family, by_name[family.name])


def _counter_or_gauge(family: Family, series: dict[tuple[str, ...], float]) -> Metric:
    kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    metric: CounterMetricFamily | GaugeMetricFamily = kind(family.name, family.help, labels=family.labels)
    for values, number in series.items():
        metric.add_metric(values, number)
    return metric


def _histogram(family: Family, series: dict[tuple[str, ...], float]) -> Metric:
    metric = HistogramMetricFamily(family.name, family.help, labels=family.labels)
    buckets: dict[tuple[str, ...], list[tuple[str, float]]] = {}
    for (*values, bound), number in series.items():
        if bound != "sum":
            below = buckets.setdefault(tuple(values), [])
            below.append((bound, number + (below[-1][1] if below else 0)))  # Prometheus's buckets are cumulative
    for values_, cumulative in buckets.items():
        metric.add_metric(values_, cumulative, sum_value=series[*values_, "sum"])
    return metric
