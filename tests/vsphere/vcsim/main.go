// Vcsim serves VMware's vCenter simulator, the library govmomi/simulator, for the tests of the vSphere driver.
//
// The simulator's own program is a Go module that no module proxy has at this version; this one needs the library
// alone, and does what tests want of it: it says on its standard output, as one line of JSON, where it listens and
// where its datastores' directories are, and it ends, with everything that it made, when its standard input does.
package main

import (
	"crypto/tls"
	"encoding/json"
	"flag"
	"io"
	"log"
	"net/url"
	"os"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// Ready is what a reader of the standard output gets to know.
type Ready struct {
	URL string `json:"url"`
	// Datastores has a datastore's name and the directory on this machine that its files are in.
	Datastores map[string]string `json:"datastores"`
}

func main() {
	listen := flag.String("l", "127.0.0.1:0", "address to listen on")
	user := flag.String("username", "user", "a user who may log in")
	administrator := flag.String("administrator", "administrator@vsphere.local", "the only other one, with the same password")
	password := flag.String("password", "pass", "their password")
	certificate := flag.String("cert", "", "file with the server's certificate")
	key := flag.String("key", "", "file with its key")
	model := simulator.VPX()
	flag.IntVar(&model.Cluster, "cluster", 1, "clusters")
	flag.IntVar(&model.ClusterHost, "host", 2, "hosts of each cluster")
	flag.IntVar(&model.Host, "standalone-host", 0, "hosts outside clusters")
	flag.IntVar(&model.Datastore, "ds", 2, "datastores")
	flag.IntVar(&model.Portgroup, "pg", 2, "distributed port groups")
	flag.IntVar(&model.Machine, "vm", 0, "virtual machines of each resource pool")
	flag.Parse()

	pair, err := tls.LoadX509KeyPair(*certificate, *key)
	if err != nil {
		log.Fatal(err)
	}
	// The library says it is 6.5, to which clients would speak that old API; it knows all types of this one.
	about := &model.ServiceContent.About
	about.Version, about.ApiVersion = "8.0.3", "8.0.3.0"
	about.FullName = "VMware vCenter Server 8.0.3 (govmomi simulator)"
	// Its directory is made below TMPDIR.
	if err := model.Create(); err != nil {
		log.Fatal(err)
	}
	defer model.Remove()
	model.Map().Put(&viewManager{model.Map().ViewManager()})
	// vCenter allows 32 for each session; the simulator also counts those of sessions that have ended.
	model.Map().EventManager().MaxCollector = 1 << 20
	model.Service.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	model.Service.Listen = &url.URL{Host: *listen, User: url.UserPassword(*user, *password)}
	model.Map().SessionManager().ValidLogin = func(login *types.Login) bool {
		return (login.UserName == *user || login.UserName == *administrator) && login.Password == *password
	}
	server := model.Service.NewServer() // not closed: that would wait for long polls

	address := *server.URL // the one in use has the user whose login is accepted
	address.User = nil
	ready := Ready{URL: address.String(), Datastores: map[string]string{}}
	for _, entity := range model.Map().All("Datastore") {
		datastore := entity.(*simulator.Datastore)
		ready.Datastores[datastore.Name] = datastore.Summary.Url
	}
	if err := json.NewEncoder(os.Stdout).Encode(ready); err != nil {
		log.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
}
