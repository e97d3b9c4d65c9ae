"""Times of collectives and the bound of a step, by hand."""

import pytest

import scaling
import scaling.hardware
import scaling.roofline

V5E, H200 = scaling.hardware.named('v5e'), scaling.hardware.named('h200')


def seconds(accelerator, *arguments, **options):
  return scaling.roofline.seconds(scaling.Exchange(*arguments, **options), accelerator)


def test_a_gather_over_one_axis_of_a_torus_uses_both_directions_of_its_ring():
  """16 chips, 2 links of 50 GB/s each way: of 1.6 GB each receives 1.5."""
  assert seconds(V5E, 'all-gather', 1.6e9, 16) == {'links': pytest.approx(1.5e9 / 100e9)}


def test_a_reduction_is_a_scatter_and_a_gather():
  parts = [seconds(V5E, kind, 1e9, 16)['links'] for kind in ('reduce-scatter', 'all-gather', 'all-reduce')]
  assert parts[0] + parts[1] == pytest.approx(parts[2])


def test_an_axis_over_the_whole_torus_has_the_links_of_both_dimensions():
  one, two = (seconds(V5E, 'all-gather', 1e9, 256, dimensions=n)['links'] for n in (1, 2))
  assert one == pytest.approx(2 * two)


def test_an_all_to_all_on_a_long_ring_is_held_up_by_its_middle():
  """Austin et al. 2025, chapter 3: a quarter of the gather of the whole array, here 16 times what a device has."""
  gathered = 16 * 1e9 / 100e9
  assert seconds(V5E, 'all-to-all', 1e9, 16)['links'] == pytest.approx(gathered / 4 * 15 / 16)
  assert seconds(H200, 'all-to-all', 1e9, 8)['links'] == pytest.approx(7 / 8 * 1e9 / 450e9)


def test_hosts_share_what_goes_between_them():
  """8 GPUs on each of 4 hosts: each of the 8 receives an eighth of what the other hosts have."""
  found = seconds(H200, 'all-gather', 32e9, 32, islands=4)
  assert found == {'links': pytest.approx(28e9 / 450e9), 'network': pytest.approx(24e9 / (8 * 50e9))}
  assert set(seconds(H200, 'all-reduce', 1e9, 4, islands=4)) == {'network'}


def test_alone_nothing_is_sent_and_unknown_kinds_are_refused():
  assert seconds(V5E, 'all-reduce', 1e9, 1) == {}
  with pytest.raises(ValueError, match="no collective 'broadcast'; there are all-gather"):
    seconds(V5E, 'broadcast', 1e9, 4)
  with pytest.raises(ValueError, match='no bandwidth of the network between islands of v4'):
    seconds(scaling.hardware.named('v4'), 'all-reduce', 1e9, 4, islands=2)


def test_the_bound_is_what_is_busy_longest():
  compute = scaling.roofline.bound(V5E, 197e12, 1e9)
  assert compute.name == 'compute' and compute.seconds == pytest.approx(1.0)
  memory = scaling.roofline.bound(V5E, 1e12, 819e9)
  assert memory.name == 'memory' and memory.seconds == pytest.approx(1.0)
  exchanges = [scaling.Exchange('all-reduce', 1e12, 16, label='tensor'), scaling.Exchange('all-gather', 1e9, 16)]
  links = scaling.roofline.bound(V5E, 1e12, 1e9, exchanges)
  assert links.name == 'links: tensor' and set(links.times) == {'compute', 'memory', 'links: tensor', 'links: '}
  assert set(scaling.roofline.bound(H200, 1e12, 1e9, exchanges).times) == {'compute', 'memory', 'links'}
