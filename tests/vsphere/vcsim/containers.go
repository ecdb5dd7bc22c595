package main

import (
	"slices"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

const virtualMachine = "VirtualMachine"

// containers keeps a container view of a folder up to date, in the place of the library's own way.
//
// That one tells filters of what is new while it has the view locked, and a filter looks at its view while it has
// itself locked (as with list views, see there): two virtual machines made while somebody waits for updates could
// stop the simulator for good. And it tells nobody of virtual machines that change folders: views of the folder that
// one was in show it for ever, and who follows its parent hears of no other one.
type containers struct {
	*simulator.ContainerView
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
	follower := &containers{view, ctx.Session, map[types.ManagedObjectReference]types.ManagedObjectReference{}}
	for _, machine := range ctx.Map.All(virtualMachine) {
		if parent := machine.Entity().Parent; parent != nil {
			follower.parents[machine.Reference()] = *parent
		}
	}
	ctx.Map.AddHandler(follower) // in the view's place, since it has the view's reference
	return made
}

// PutObject is called of what is new, and of what has moved.
func (c *containers) PutObject(ctx *simulator.Context, object mo.Reference) {
	if c.session.Get(c.Self) == nil { // its session has ended
		ctx.Map.RemoveHandler(c)
		return
	}
	entity, ok := object.(mo.Entity)
	if !ok || entity.Entity().Parent == nil {
		return
	}
	ref, parent := object.Reference(), *entity.Entity().Parent
	holds := c.includes(ref) && c.holds(ctx, entity)
	var entered, left, moved bool
	ctx.WithLock(c.ContainerView, func() {
		shown := slices.Contains(c.View, ref)
		entered, left = holds && !shown, shown && !holds
		if entered {
			c.View = append(c.View, ref)
		} else if left {
			simulator.RemoveReference(&c.View, ref)
		}
		if ref.Type == virtualMachine {
			before, known := c.parents[ref]
			c.parents[ref] = parent
			moved = known && before != parent
		}
	})
	c.tell(ctx, object, entered, left, moved)
}

// tell lets those who wait for updates know. The view is not locked any more; what is in it now is what they look at.
func (c *containers) tell(ctx *simulator.Context, object mo.Reference, entered, left, moved bool) {
	parent := types.PropertyChange{Name: "parent", Op: types.PropertyChangeOpAssign, Val: *object.(mo.Entity).Entity().Parent}
	for _, collector := range c.session.AllReference("PropertyCollector") {
		told := collector.(*simulator.PropertyCollector)
		if left {
			told.RemoveObject(ctx, object.Reference())
			continue
		}
		if entered {
			told.PutObject(ctx, object)
		}
		if moved {
			told.UpdateObject(ctx, object, []types.PropertyChange{parent})
		}
	}
}

func (c *containers) RemoveObject(ctx *simulator.Context, ref types.ManagedObjectReference) {
	ctx.WithLock(c.ContainerView, func() {
		simulator.RemoveReference(&c.View, ref)
		delete(c.parents, ref)
	})
}

// includes tells whether the view is one of just this kind of object; nobody here asks for a kind of kinds.
func (c *containers) includes(ref types.ManagedObjectReference) bool {
	return len(c.Type) == 0 || slices.Contains(c.Type, ref.Type)
}

// holds tells whether an entity is below the view's folder, at any depth if the view is of all depths.
func (c *containers) holds(ctx *simulator.Context, entity mo.Entity) bool {
	for entity != nil && entity.Entity().Parent != nil {
		parent := *entity.Entity().Parent
		if parent == c.Container {
			return true
		}
		if !c.Recursive {
			return false
		}
		entity, _ = ctx.Map.Get(parent).(mo.Entity)
	}
	return false
}
