"""The launch files: their syntax, and that they say what train.py and the launchers understand."""

import pathlib
import re
import subprocess

import pytest
import yaml

import train

LAUNCH = pathlib.Path(__file__).resolve().parents[2] / 'launch'
# Options of sbatch(1) that the example uses, and what their values look like.
SBATCH = {
  'job-name': r'\w+',
  'nodes': r'[1-9]\d*',
  'ntasks-per-node': r'[1-9]\d*',
  'gpus-per-node': r'[1-9]\d*',
  'cpus-per-task': r'[1-9]\d*',
  'mem': r'\d+',
  'exclusive': None,
  'time': r'(\d+-)?\d\d:\d\d:\d\d',
  'signal': r'[A-Z]+@\d+',
  'requeue': None,
  'open-mode': 'append',
  'output': r'[\w%.-]+',
}


@pytest.mark.parametrize('name', ['local.sh', 'slurm.sbatch'])
def test_scripts_are_bash(name):
  subprocess.run(['bash', '-n', LAUNCH / name], check=True)


def test_local_says_how_it_is_used():
  for arguments in ([], ['two'], ['0']):
    result = subprocess.run([LAUNCH / 'local.sh', *arguments], capture_output=True, text=True)
    assert result.returncode == 2 and 'usage: launch/local.sh N' in result.stderr


def test_sbatch_lines():
  lines = (LAUNCH / 'slurm.sbatch').read_text().splitlines()
  assert lines[0].startswith('#!')
  marked = [number for number, line in enumerate(lines) if line.startswith('#SBATCH')]
  # sbatch stops reading options at the first line that is no comment.
  assert not any(line and not line.startswith('#') for line in lines[: marked[-1]])
  options = {}
  for number in marked:
    match = re.fullmatch(r'#SBATCH --([\w-]+)(?:=(\S+))?', lines[number])
    assert match, lines[number]
    options[match[1]] = match[2]
  assert options.keys() == SBATCH.keys()
  for name, value in options.items():
    assert (value is None) == (SBATCH[name] is None) and (value is None or re.fullmatch(SBATCH[name], value)), name
  # JAX gives each task the GPU of its number on the node.
  assert options['ntasks-per-node'] == options['gpus-per-node']


def test_sbatch_asks_for_what_it_needs():
  result = subprocess.run(
    ['bash', LAUNCH / 'slurm.sbatch'], capture_output=True, text=True, env={'PATH': '/usr/bin:/bin'}
  )
  assert result.returncode and 'set CONFIG=configs/NAME.py' in result.stderr


def test_jobset():
  """Against the API jobset.x-k8s.io/v1alpha2 and batch/v1, as far as the example uses them."""
  [manifest] = yaml.safe_load_all((LAUNCH / 'jobset.yaml').read_text())
  assert manifest.keys() == {'apiVersion', 'kind', 'metadata', 'spec'}
  assert (manifest['apiVersion'], manifest['kind']) == ('jobset.x-k8s.io/v1alpha2', 'JobSet')
  spec = manifest['spec']
  assert spec.keys() <= {'failurePolicy', 'network', 'replicatedJobs', 'successPolicy', 'startupPolicy', 'suspend'}
  assert spec['failurePolicy'].keys() <= {'maxRestarts', 'rules', 'restartStrategy'}
  assert spec['network'].keys() <= {'enableDNSHostnames', 'subdomain', 'publishNotReadyAddresses'}
  [workers] = spec['replicatedJobs']
  assert workers.keys() <= {'name', 'replicas', 'template'} and isinstance(workers['replicas'], int)
  job = workers['template']['spec']
  assert job.keys() <= {'parallelism', 'completions', 'completionMode', 'backoffLimit', 'template'}
  assert job['parallelism'] == job['completions'] and job['completionMode'] == 'Indexed'
  pod = job['template']['spec']
  assert pod.keys() <= {'restartPolicy', 'terminationGracePeriodSeconds', 'containers', 'volumes'}
  assert pod['restartPolicy'] == 'Never'  # a Job with backoffLimit 0 hands failures to the set
  [container] = pod['containers']
  assert container.keys() <= {'name', 'image', 'workingDir', 'command', 'ports', 'resources', 'volumeMounts'}
  assert {mount['name'] for mount in container['volumeMounts']} == {volume['name'] for volume in pod['volumes']}
  gpus = container['resources']['limits']['nvidia.com/gpu']
  [port] = container['ports']
  python, script, *arguments = container['command']
  assert (python, script) == ('python', 'train.py')
  known, overrides = train.parse([argument.replace('$(JOB_COMPLETION_INDEX)', '3') for argument in arguments])
  first = f'{manifest["metadata"]["name"]}-{workers["name"]}-0-0.{manifest["metadata"]["name"]}'
  assert known.coordinator == f'{first}:{port["containerPort"]}'
  assert known.num_processes == job['parallelism'] * workers['replicas'] and known.process_id == 3
  assert f'--config.mesh.fsdp={gpus * known.num_processes}' in overrides
