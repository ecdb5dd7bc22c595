package main

import (
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

const virtualMachine = "VirtualMachine"

// moves has a container view follow what moves between folders.
//
// The library moves a virtual machine and tells nobody: views of the folder that it was in show it for ever, and who
// follows its parent hears of no other one.
type moves struct {
	view    *simulator.ContainerView
	session *simulator.Session
	// Of all virtual machines, in whatever folder.
	parents map[types.ManagedObjectReference]types.ManagedObjectReference
}

func (m *viewManager) CreateContainerView(ctx *simulator.Context, req *types.CreateContainerView) soap.HasFault {
	made := m.ViewManager.CreateContainerView(ctx, req)
	body, ok := made.(*methods.CreateContainerViewBody)
	if !ok || body.Res == nil || req.Container.Type != "Folder" {
		return made
	}
	view := ctx.Session.Get(body.Res.Returnval).(*simulator.ContainerView)
	follower := &moves{view, ctx.Session, map[types.ManagedObjectReference]types.ManagedObjectReference{}}
	for _, machine := range ctx.Map.All(virtualMachine) {
		if parent := machine.Entity().Parent; parent != nil {
			follower.parents[machine.Reference()] = *parent
		}
	}
	ctx.Map.AddHandler(follower)
	return made
}

func (m *moves) Reference() types.ManagedObjectReference {
	return types.ManagedObjectReference{Type: "Moves", Value: m.view.Self.Value}
}

// PutObject is called of what is new, and of what has moved.
func (m *moves) PutObject(ctx *simulator.Context, object mo.Reference) {
	if m.session.Get(m.view.Self) == nil { // it was destroyed
		ctx.Map.RemoveHandler(m)
		return
	}
	machine, ok := object.(mo.Entity)
	if !ok || object.Reference().Type != virtualMachine || machine.Entity().Parent == nil {
		return
	}
	ref, parent := object.Reference(), *machine.Entity().Parent
	var moved, left bool
	ctx.WithLock(m.view, func() {
		before, known := m.parents[ref]
		m.parents[ref] = parent
		moved = known && before != parent
		if moved && !m.holds(ctx, machine) {
			shown := len(m.view.View)
			simulator.RemoveReference(&m.view.View, ref)
			left = len(m.view.View) < shown
		}
	})
	change := types.PropertyChange{Name: "parent", Op: types.PropertyChangeOpAssign, Val: parent}
	for _, collector := range m.session.AllReference("PropertyCollector") {
		told := collector.(*simulator.PropertyCollector)
		if left {
			told.RemoveObject(ctx, ref)
		} else if moved {
			told.UpdateObject(ctx, object, []types.PropertyChange{change})
		}
	}
}

func (m *moves) UpdateObject(*simulator.Context, mo.Reference, []types.PropertyChange) {}

func (m *moves) RemoveObject(ctx *simulator.Context, ref types.ManagedObjectReference) {
	ctx.WithLock(m.view, func() { delete(m.parents, ref) })
}

// holds tells whether an entity is somewhere below the view's folder.
func (m *moves) holds(ctx *simulator.Context, entity mo.Entity) bool {
	for entity != nil && entity.Entity().Parent != nil {
		parent := *entity.Entity().Parent
		if parent == m.view.Container {
			return true
		}
		entity, _ = ctx.Map.Get(parent).(mo.Entity)
	}
	return false
}
