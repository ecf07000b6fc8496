# nomad job run conf/nomad/balancer.nomad.hcl
#
# Consul answers on port 8600 and cuts answers over UDP without saying so: `resolver = ... tcp`. The records of a service
# are SRV: each resizer has the port that Nomad gave it.
job "pictures" {
  group "balancer" {
    count = 2
    network {
      port "clients" { static = 9090 }
      port "metrics" { static = 9091 }
    }
    service {
      name = "pictures"
      port = "clients"
      check {
        type     = "http"
        port     = "metrics"
        path     = "/health"
        interval = "2s"
        timeout  = "1s"
      }
    }
    task "balancer" {
      driver       = "docker"
      kill_signal  = "SIGTERM"
      kill_timeout = "40s"
      config {
        image   = "prefork-balancer"
        command = "balancer"
        args    = ["--config", "/local/balancer.ini"]
        ports   = ["clients", "metrics"]
      }
      template {
        destination   = "local/balancer.ini"
        change_mode   = "signal"
        change_signal = "SIGHUP"
        data          = <<EOT
[balancer]
bind = 0.0.0.0
port = 9090
upstream = srv:_resizer._tcp.service.consul slots=64 name=resizer
resolver = {{ env "attr.unique.network.ip-address" }}:8600 tcp
mode = framed
frame = gowork
order = any
check = frame
agent-path = /agent
drain-timeout = 25s
metrics = 0.0.0.0:9091
EOT
      }
      resources {
        cores  = 2
        memory = 512
      }
    }
  }

  group "resizer" {
    count = 4
    network {
      port "frames" {}
    }
    service {
      name = "resizer"
      port = "frames"
      check {
        type     = "http"
        path     = "/ready"
        interval = "2s"
        timeout  = "1s"
      }
    }
    shutdown_delay = "12s" # the name loses the task before the task stops
    task "resizer" {
      driver       = "docker"
      kill_timeout = "20s"
      config {
        image   = "prefork-balancer"
        command = "resizer"
        args    = ["--port", "${NOMAD_PORT_frames}", "--bind", "0.0.0.0", "--drain-timeout", "15s"]
        ports   = ["frames"]
      }
      resources {
        cores  = 2
        memory = 2048
      }
    }
  }
}
